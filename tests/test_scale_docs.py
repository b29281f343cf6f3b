"""docs/scale.md and its two files: the table is what the formulas give, and what they run are commands of align."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import test_docs
from align.errors import Exit
from align.runner import launch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks import page, scale  # noqa: E402
from benchmarks.gpu import ppo  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENDS_FOR_GOOD = sorted({Exit.BAD_INPUT, Exit.GATE, Exit.MACHINE})


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "docs" / "examples" / name).read_text("utf-8"))
    return found


# Commands ------------------------------------------------------------------------------------------------------------


def test_the_pod_runs_align_itself_and_is_replaced_where_that_helps() -> None:
    job = read("kubernetes.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    test_docs.test_every_command_line_parses(PAGE, shlex.join(container["command"]))
    assert (container["command"][0], container.get("args")) == ("align", None), "no shell that keeps SIGTERM to itself"
    assert pod["restartPolicy"] == "Never", "which podFailurePolicy requires"
    assert f"`terminationGracePeriodSeconds: {pod['terminationGracePeriodSeconds']}`" in TEXT
    ignored, failed = job["spec"]["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget"}])
    codes = {"containerName": container["name"], "operator": "In", "values": ENDS_FOR_GOOD}
    assert (failed["action"], failed["onExitCodes"]) == ("FailJob", codes)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    folder = container["command"][container["command"].index("--run-dir") + 1]
    assert (Path(container["workingDir"]) / folder).is_relative_to(mounts["work"]), "the run outlives the pod"
    assert mounts["shm"] == "/dev/shm"


def test_the_spot_job_keeps_its_run_in_the_bucket() -> None:
    task = read("skypilot.yaml")
    (bucket,) = task["file_mounts"]
    assert task["file_mounts"][bucket]["mode"] == "MOUNT_CACHED" and task["resources"]["use_spot"] is True
    line = task["run"].strip().replace('"$SKYPILOT_NUM_GPUS_PER_NODE"', "4")
    test_docs.test_every_command_line_parses(PAGE, line)
    words = shlex.split(line)
    assert Path(words[words.index("--run-dir") + 1]).is_relative_to(bucket)


def test_commands_inside_others_parse_too() -> None:
    shell = "\n".join(test_docs.blocks(PAGE, "bash"))
    inner = re.findall(r"'(align [^']+)'", shell)
    assert len(inner) == 1
    for line in inner:
        test_docs.test_every_command_line_parses(PAGE, line)


def test_every_command_of_the_page_is_one_that_is_known() -> None:
    """A new one has to be looked at by someone who knows the tool."""
    plain = re.findall(r"\n\n((?:    .+\n)+)", TEXT)
    lines = [line for block in [*test_docs.blocks(PAGE, "bash"), *plain] for line in block.splitlines()]
    assert {" ".join(line.split()[:2]) for line in lines} == {
        *("align run", "align status", "python -m", "kubectl apply", "sky jobs"),
        *("sbatch mine.sh", "tmux new-session", "tmux attach", "ssh node1"),
    }


def test_what_the_training_processes_get_is_documented() -> None:
    rows = test_docs.rows_below(PAGE, "## Environment")
    documented = {}
    for names, values, _ in rows:
        named, given = (re.findall(r"`(\w+)`", cell) for cell in (names, values))
        documented |= dict.fromkeys(named, given[0]) if len(given) == 1 else dict(zip(named, given, strict=False))
    assert documented == launch._QUIET, "OMP_NUM_THREADS has no one value"


def test_the_codes_not_to_retry() -> None:
    sentence = TEXT.partition("Codes that a scheduler must not retry: ")[2].partition("All codes")[0]
    assert [int(code) for code in re.findall(r"(\d) \(|, (\d)", sentence) for code in code if code] == ENDS_FOR_GOOD


# The table -----------------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_formulas_give() -> None:
    assert page.filled(TEXT, scale.MARK, scale.table()) == TEXT, "python -m benchmarks.scale --write"
    with pytest.raises(ValueError, match="the page has no mark"):
        page.filled("# Scale\n", scale.MARK, scale.table())


def test_the_shapes_count_as_published() -> None:
    assert {name: sum(ppo.weights(shape)) for name, shape in scale.SHAPES.items()} == {
        "1.1B": 1_100_048_384,
        "3.4B": 3_426_473_600,
        "7B": 6_738_415_616,
        "13B": 13_015_864_320,
        "33B": 32_528_943_616,
        "70B": 68_976_648_192,
    }


def test_bytes_by_hand() -> None:
    seven = scale.SHAPES["7B"]
    whole, adapter = 6_738_415_616, 39_976_960
    assert scale.state(seven, "full") == 16 * whole
    assert scale.state(seven, "full", sharing=8) == pytest.approx(4 * whole + 12 * whole / 8)
    assert scale.state(seven, "lora") == 2 * whole + 16 * adapter
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert scale.state(seven, "qlora") == pytest.approx(
        4.127 / 8 * matrices + 2 * (whole - matrices) + 16 * adapter, rel=1e-4
    )
    at_work = 6 * (matrices / 32 + whole - matrices)
    assert scale.fully_sharded(seven, 2) == pytest.approx(16 * whole / 2 + at_work)
    assert scale.fully_sharded(seven, 8) == 4 * whole + 4 * whole / 8, "the whole model, before and after training"
    assert scale.activations(seven) == 2 * 2048 * 4096 * 32 + 34 * 2048 * 4096


def test_a_weight_takes_what_it_takes_in_the_paper_on_zero() -> None:
    """Figure 1 of arXiv 1910.02054: 7.5 billion weights take 120 GB, 16 bytes each. There 14 of them are shared out
    among 64 processes; of float32 weights without a copy in half precision 12 are."""
    shape = scale.SHAPES["7B"]
    share = scale.state(shape, "full", sharing=64) / scale.state(shape, "full")
    assert share == pytest.approx((4 + 12 / 64) / 16)
    assert scale.state(shape, "full") / sum(ppo.weights(shape)) * 7.5e9 == pytest.approx(120e9)


@pytest.mark.parametrize(
    ("gigabytes", "chosen"),
    [
        (6, "none"),
        (7, "`qlora`"),
        (19, "`lora`"),
        (48, "`lora`; `full` with FSDP2 on 4"),
        (135, "`lora`; `full` with FSDP2 on 2"),
        (136, "`full`"),
    ],
)
def test_the_choice_for_7b(gigabytes: float, chosen: str) -> None:
    assert scale.choice(scale.SHAPES["7B"], gigabytes) == chosen
