"""`align run --print-sbatch`: the text of the script, and what becomes of a job under a cluster that is not there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from align.cli.commands import app
from align.errors import AlignError
from align.runner import slurm
from align.runner.options import Options
from fake_slurm import Cluster, Job

RECIPE = """\
name: queued
seed: 3
model: {base: lab, dtype: bfloat16}
parameterization: {method: lora}
forgetting: {probes: none}
stages:
  sft:
    data: {source: lab/helpdesk, limit: 96}
    training: {learning_rate: 1.0e-3, max_steps: 60, per_device_train_batch_size: 8, save_steps: 50, logging_steps: 1}
"""


def printed(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return runs.align("run", *arguments, "--print-sbatch", code=code)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return "small.yaml"


# The text ------------------------------------------------------------------------------------------------------------


def test_a_recipe_is_checked_and_its_script_printed(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["run", recipe, "--print-sbatch", "--set", "seed=8"], standalone_mode=False)
    said = capsys.readouterr()
    head, _, body = said.out.partition("\n\n")
    assert head.splitlines() == [
        "#!/bin/bash",
        "# Written by `align run --print-sbatch`. Edit these for your cluster, then: sbatch FILE",
        "#SBATCH --time=04:00:00",
        "##SBATCH --partition=NAME",
        "##SBATCH --account=NAME",
        "##SBATCH --mem=64G",
        "# These fit the run:",
        "#SBATCH --job-name=queued",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={tmp_path}/runs/queued/slurm-%j.log",
    ]
    lines = body.splitlines()
    assert f"cd -- {tmp_path} || exit" in lines
    assert f"{sys.executable} -P -m align run small.yaml --set seed=8 &" in lines
    assert list((tmp_path / "runs/queued").iterdir()) == [], "nothing was started; SLURM makes no folder for its output"


def test_what_the_command_line_asks_for_stands_in_the_script(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it holds, a shell reads the same words from it."""
    given = ["--set", "parameterization={method: lora}", "--set", "seed=8", "--run-dir", "it is $here"]
    given += ["--from", "sft", "--processes", "2"]
    app(
        ["run", recipe, *given, "--print-sbatch", "--sbatch", "exclusive", "--sbatch", "time=1-0"],
        standalone_mode=False,
    )
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if " -m align run " in line)
    words = shlex.split(line.removesuffix(" &"))
    assert words == [sys.executable, "-P", "-m", "align", "run", recipe, *given]
    assert f"#SBATCH --output='{tmp_path}/it is $here/slurm-%j.log'\n" in out
    assert "#SBATCH --exclusive\n" in out and "#SBATCH --time=1-0\n" in out and "04:00:00" not in out
    assert "#SBATCH --cpus-per-task=16\n" in out and "cores=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-16}}\n" in out


def test_a_wrong_recipe_gets_no_script(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AlignError, match="unknown key 'sed'"):
        app(["run", recipe, "--print-sbatch", "--set", "sed=8"], standalone_mode=False)
    with pytest.raises(AlignError) as error:
        app(["run", recipe, "--print-sbatch", "--from", "dpo"], standalone_mode=False)
    assert error.value.what == "--from names 'dpo', which is not a stage of this recipe"
    assert capsys.readouterr().out == "" and not (tmp_path / "runs").exists()


def test_without_a_recipe_one_is_written_and_named(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n' * 3, encoding="utf-8")
    flags = ["--model", "lab", "--data", "rows.jsonl", "--set", "forgetting.probes=none"]
    app(["run", *flags, "--print-sbatch"], standalone_mode=False)
    said = capsys.readouterr()
    assert "wrote lab-rows-sft-lora.yaml\n" in said.err, "and it is not said to run"
    assert f"{sys.executable} -P -m align run lab-rows-sft-lora.yaml --set forgetting.probes=none &\n" in said.out


def job(command: list[str], folder: Path, gpus: int = 0, processes: int = 1, machines: int = 1) -> slurm.Job:
    return slurm.Job("mine", folder, folder, processes, gpus, command, machines)


def test_nodes_share_the_processes_evenly(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = slurm.script(job(["true"], tmp_path, gpus=4, processes=4, machines=2)).partition("\n\n")[0].splitlines()
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=4"} <= set(head)
    assert "#SBATCH --cpus-per-task=32" in head
    app(["run", recipe, "--processes", "2", "--machines", "2", "--print-sbatch"], standalone_mode=False)
    out = capsys.readouterr().out
    assert out.count(" -m align run small.yaml --processes 2 --machines 2") == 2
    with pytest.raises(AlignError, match="numbers the machines itself"):
        app(["run", recipe, "--main-address", "node0", "--print-sbatch"], standalone_mode=False)


@pytest.mark.parametrize(
    ("gpus", "asked", "lines"),
    [
        (0, [], []),
        (4, [], ["#SBATCH --gpus-per-node=4"]),
        (4, ["gpus-per-node=0"], []),
        (4, ["gpus-per-node=a100:4"], ["#SBATCH --gpus-per-node=a100:4"]),
        (4, ["gres=gpu:a100:4"], ["#SBATCH --gres=gpu:a100:4"]),
        (0, ["gres=gpu:1", "gres=gpu:2"], ["#SBATCH --gres=gpu:2"]),
    ],
)
def test_a_process_has_a_gpu_unless_asked_otherwise(
    gpus: int, asked: list[str], lines: list[str], tmp_path: Path
) -> None:
    found = slurm.script(job(["true"], tmp_path, gpus), asked).splitlines()
    assert [line for line in found if line.startswith(("#SBATCH --gpu", "#SBATCH --gres"))] == lines


def test_what_the_user_knows_is_no_comment_any_more(tmp_path: Path) -> None:
    asked = ["partition=gpu", "account=me", "mem=8G", "constraint=a100|h100", "signal=B:SIGUSR1@300"]
    head = slurm.script(job(["true"], tmp_path / "a%b"), asked).partition("\n\n")[0].splitlines()
    assert head[2:6] == [
        "#SBATCH --time=04:00:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --account=me",
        "#SBATCH --mem=8G",
    ]
    assert "#SBATCH --signal=B:SIGUSR1@300" in head and "#SBATCH --signal=B:USR1@120" not in head
    assert "#SBATCH --constraint='a100|h100'" in head
    assert f"#SBATCH --output={tmp_path}/a%%b/slurm-%j.log" in head


@pytest.mark.parametrize(
    ("asked", "processes", "threads"),
    [((), 2, 8), (("cpus-per-task=12",), 2, 6), (("cpus-per-task=1",), 2, 1), (("cpus-per-gpu=4",), 3, 8)],
)
def test_cores_are_divided_among_processes(
    asked: tuple[str, ...], processes: int, threads: int, tmp_path: Path
) -> None:
    """As far as the script knows them: SLURM names them only where they are asked for by task."""
    text = slurm.script(job(["true"], tmp_path, processes=processes), asked)
    cores = re.findall(r"^#SBATCH --cpus-per-task=(\d+)$", text, re.MULTILINE)
    assert len(cores) == (0 if asked and asked[0].startswith("cpus-per-gpu") else 1)
    lines = [line for line in text.splitlines() if line.startswith(("cores=", "export OMP_NUM_THREADS"))]
    known = {"SLURM_CPUS_PER_TASK": cores[0]} if cores else {}
    shell = "\n".join([*lines, "echo $OMP_NUM_THREADS"])
    done = subprocess.run(["bash", "-c", shell], env=known, capture_output=True, text=True, check=True)
    assert int(done.stdout) == threads


FORM = "write its long name without dashes, as in --sbatch time=08:00:00 or --sbatch exclusive"
ONE = "a run is one task on each node, which starts its processes itself"


@pytest.mark.parametrize(
    ("asked", "what", "remedy"),
    [
        ("--time=1", "--sbatch '--time=1' is not an option of sbatch", FORM),
        ("p gpu", "--sbatch 'p gpu' is not an option of sbatch", FORM),
        ("time=", "--sbatch 'time=' is not an option of sbatch", FORM),
        ("time=1\nrm x", r"--sbatch 'time=1\nrm x' is not an option of sbatch", FORM),
        ("comment=it's", '--sbatch "comment=it\'s" is not an option of sbatch', FORM),
        (
            "nodes=2",
            f"--sbatch nodes=2: {ONE}",
            "leave it out; --processes says how many train, and --machines on how many nodes",
        ),
        (
            "array=1-3",
            "--sbatch array=1-3: the tasks of an array would share one run folder",
            "print a script for each run, with a --run-dir of its own",
        ),
        (
            "signal=USR1@60",
            "--sbatch signal=USR1@60: the script saves a checkpoint when it gets B:USR1",
            "write signal=B:USR1@SECONDS, the seconds before the time limit; it is 120",
        ),
    ],
)
def test_what_is_no_option_is_refused(asked: str, what: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        slurm.script(job(["true"], tmp_path), [asked])
    assert (error.value.what, error.value.remedy) == (what, remedy)


def test_a_folder_that_no_line_can_hold(tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        slurm.script(job(["true"], Path("/it's")))
    assert error.value.what == 'the run folder "/it\'s" has a character that no #SBATCH line can hold'
    assert error.value.remedy == "give another --run-dir, without quotes, backslashes and line breaks"


def test_options_of_a_script_that_is_not_asked_for(recipe: str) -> None:
    with pytest.raises(AlignError) as error:
        app(["run", recipe, "--sbatch", "time=1"], standalone_mode=False)
    assert error.value.what == "--sbatch says what the script of --print-sbatch asks for"
    assert error.value.remedy == "add --print-sbatch"


def test_a_script_and_the_launches_are_not_both_printed(recipe: str) -> None:
    with pytest.raises(AlignError) as error:
        app(["run", recipe, "--print-sbatch", "--print-launch"], standalone_mode=False)
    assert error.value.what == "--print-launch and --print-sbatch each print something else"
    assert error.value.remedy == "give one of them"


def test_the_command_is_what_was_asked_for() -> None:
    python = [sys.executable, "-P", "-m", "align", "run", "r.yaml"]
    assert slurm.command("r.yaml", [], None, Options(), None) == python
    assert slurm.command("r.yaml", [], None, Options(fresh=True), None) == [*python, "--fresh"]
    assert slurm.command("r.yaml", [], None, Options(only="dpo"), 3) == [*python, "--only", "dpo", "--processes", "3"]


# A job ---------------------------------------------------------------------------------------------------------------

LEAVES = """
echo "begun $SLURM_RESTART_COUNT, $OMP_NUM_THREADS threads"
if [ "$SLURM_RESTART_COUNT" = 1 ]; then exit 0; fi
trap 'echo asked; sleep 0.3; exit {code}' TERM
touch up
while :; do sleep 0.02; done
"""


def submit(shell: str, folder: Path, *asked: str) -> Job:
    """A job whose `align run` is a line of shell."""
    (folder / "run").mkdir()
    script = folder / "job.sh"
    script.write_text(slurm.script(job(["bash", "-c", shell], folder, processes=2), asked), encoding="utf-8")
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=True).stderr == ""
    return Cluster(folder / "cluster").submit(script, OMP_NUM_THREADS="")


def log(folder: Path) -> list[str]:
    return (folder / "slurm-1.log").read_text().splitlines()


def test_at_its_limit_it_saves_goes_back_into_the_queue_and_runs_again(tmp_path: Path) -> None:
    queued = submit(LEAVES.format(code=130), tmp_path)
    queued.wait((tmp_path / "up").exists)
    queued.limit()
    assert queued.ended() == [130, 0]
    assert log(tmp_path) == ["begun 0, 8 threads", "asked", "begun 1, 8 threads"], "asked once, and all in one file"


def test_a_cancelled_job_saves_and_does_not_come_back(tmp_path: Path) -> None:
    """SLURM signals every process of the script; a second signal would end the run without a checkpoint."""
    queued = submit(LEAVES.format(code=130), tmp_path)
    queued.wait((tmp_path / "up").exists)
    queued.scancel()
    assert queued.ended() == [130]
    assert log(tmp_path) == ["begun 0, 8 threads", "asked"]


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_run_that_ended_otherwise_does_not_come_back(code: int, tmp_path: Path) -> None:
    queued = submit(LEAVES.format(code=code), tmp_path)
    queued.wait((tmp_path / "up").exists)
    queued.limit()
    assert queued.ended() == [code]


def test_a_run_that_had_not_begun_comes_back(tmp_path: Path) -> None:
    """Before the command takes signals, SIGTERM kills it."""
    queued = submit('[ "$SLURM_RESTART_COUNT" = 1 ] || { touch up; exec sleep 60; }', tmp_path)
    queued.wait((tmp_path / "up").exists)
    queued.limit()
    assert queued.ended() == [143, 0]


def test_a_cluster_that_does_not_requeue(tmp_path: Path) -> None:
    queued = submit(LEAVES.format(code=130), tmp_path)
    queued.wait((tmp_path / "up").exists)
    (queued.folder / "requeue").unlink()
    queued.limit()
    assert queued.ended() == [130]
    assert log(tmp_path)[1:] == [
        "asked",
        "Requested operation is presently disabled for job 1",
        "the job was not requeued; sbatch this script again, and it resumes",
    ]


def test_a_run_does_not_wait_for_nodes_that_srun_could_not_start(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    waits = ["bash", "-c", "trap 'exit 130' TERM; while :; do sleep 0.1; done"]
    written = slurm.script(job(waits, tmp_path, machines=2))
    assert "  sleep 90\n" in written
    (tmp_path / "job.sh").write_text(written.replace("  sleep 90\n", "  sleep 0.2\n"), encoding="utf-8")
    cluster = Cluster(tmp_path / "cluster")
    (tmp_path / "cluster/bin/srun").write_text(
        "#!/bin/bash\necho 'srun: error: no such node' >&2\nexit 1\n", encoding="utf-8"
    )
    assert cluster.submit(tmp_path / "job.sh").ended() == [130]
    said = ["srun: error: no such node", "srun ended, so the other nodes are gone: see what it said above"]
    assert log(tmp_path) == said


def test_a_run_that_nobody_disturbs(tmp_path: Path) -> None:
    assert submit("echo done; exit 7", tmp_path).ended() == [7]
    assert log(tmp_path) == ["done"]


@pytest.mark.slow
def test_a_preempted_run_ends_with_the_weights_of_an_undisturbed_one(recipe: str, tmp_path: Path) -> None:
    runs.run(Path(recipe), tmp_path / "undisturbed")
    script = tmp_path / "job.sh"
    script.write_text(printed(recipe, "--run-dir", "run").stdout, encoding="utf-8")
    queued = Cluster(tmp_path / "cluster").submit(script)
    queued.wait(lambda: runs.last_step(tmp_path / "run", "sft") >= 5)
    queued.limit()
    queued.wait(lambda: queued.codes == [130])
    saved = runs.last_step(tmp_path / "run", "sft")
    assert 5 <= saved < 60, "in mid-stage"
    assert queued.ended() == [130, 0]
    assert runs.weights(tmp_path / "run") == runs.weights(tmp_path / "undisturbed")
    said = (tmp_path / "run/slurm-1.log").read_text()
    assert "interrupted; run the same command again to resume" in said and "report: run/report.html" in said


@pytest.mark.slow
def test_a_run_on_two_nodes_is_preempted_and_goes_on(recipe: str, tmp_path: Path) -> None:
    several = ["--processes", "2", "--set", "stages.sft.training.per_device_train_batch_size=4"]
    runs.run(Path(recipe), tmp_path / "undisturbed", *several)
    script = tmp_path / "job.sh"
    script.write_text(printed(recipe, "--run-dir", "run", *several, "--machines", "2").stdout, encoding="utf-8")
    cluster = Cluster(tmp_path / "cluster")
    queued = cluster.submit(script, SLURMD_NODENAME="127.0.0.2", GLOO_SOCKET_IFNAME="lo")
    queued.wait(lambda: runs.last_step(tmp_path / "run", "sft") >= 5)
    queued.limit()
    assert queued.ended() == [130, 0]
    assert runs.weights(tmp_path / "run") == runs.weights(tmp_path / "undisturbed")
    said = (tmp_path / "run/slurm-1.log").read_text()
    assert said.count("machine 1: waiting for the first machine") == 2
