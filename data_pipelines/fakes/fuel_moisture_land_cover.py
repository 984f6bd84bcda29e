"""The made-up archive of fuel moisture holds its land cover, too."""

from data_pipelines.fakes.fuel_moisture import write_archive

__all__ = ["write_archive"]
