"""The commands of the launcher and of docs/LAUNCH.md, as gcloud itself reads them: it is started once for all."""

import re
import shlex

from tests.launch.test_page import LINES
from tests.launch.test_tpu import ACTIONS, dry_run
from tests.launch.tools import gcloud_refuses

NAMES = {"BUCKET": "tiles", "PROJECT": "my-project", "NUMBER": "1234"}
MISTAKE = "gcloud compute tpus queued-resources describe geo --zohne=us-west4-a"


def test_gcloud_takes_every_command_and_finds_a_mistake(capsys, tmp_path):
    shown = [shlex.join(words) for action in ACTIONS.values() for words in dry_run(capsys, action)]
    of_launcher = [line for line in shown if line.startswith("gcloud ")]
    of_page = [re.sub("|".join(NAMES), lambda found: NAMES[found[0]], line) for line in LINES if line[:7] == "gcloud "]
    assert (len(of_launcher), len(of_page)) == (9, 4)
    [said] = gcloud_refuses([*of_launcher, *of_page, MISTAKE], tmp_path)
    assert "--zohne" in said
