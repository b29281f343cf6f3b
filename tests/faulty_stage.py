"""Supervised fine-tuning that goes wrong where FAULT says: `phase:rank:kind`, once. A stage of the tests."""

import os
import signal
import sys
import time

from align.stage import Stage

PHASE, RANK, KIND = os.environ.get("FAULT", "none:0:none").split(":")
STEP = 6  # the last one that is made before a fault in a step


def fault(phase, here):
    """Do what was asked, if this is the place; the file tells the test when."""
    if phase != PHASE or RANK not in ("all", os.environ.get("RANK", "0")):
        return
    tripped = here / f"tripped.{os.environ.get('RANK', '0')}"
    if tripped.exists():
        return
    tripped.touch()
    if KIND == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif KIND == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif KIND == "raise":
        raise ValueError("the rows are upside down")
    elif KIND == "exit":
        os._exit(0)
    elif KIND == "leave":
        sys.exit(0)
    elif KIND == "hang":
        while True:
            time.sleep(1)
    elif KIND == "wait":
        time.sleep(4)


def faults(here):
    """A trainer's callback that goes wrong."""
    from transformers import TrainerCallback

    class Faults(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step < STEP:
                time.sleep(0.3)  # it takes a second to learn what is usual
            if state.global_step == STEP:
                fault("step", here)

        def on_save(self, args, state, control, **kwargs):
            fault("saving", here)

        def on_prediction_step(self, args, state, control, **kwargs):
            fault("evaluation", here)

    return Faults()


def train(job):
    from trl import SFTConfig

    from align.data import tokens
    from align.forgetting.share import Share
    from align.trainers.sft import SftTrainer

    here = job.run.root.parent
    (here / f"pid.{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))
    fault("start-up", here)
    whole = Share.mine

    def mine(self, batches):
        for one in whole(self, batches):
            fault("measuring", here)
            yield one

    args = job.arguments(SFTConfig, completion_only_loss=False)
    args.dataset_kwargs = {"skip_prepare_dataset": True}

    def table(name, rows, groups):
        batches = tokens.language_modeling(rows, groups, job.tokenizer, args, completion_only=True, turns="all")
        return job.table(name, batches, len(rows))

    trainer = SftTrainer(
        model=job.model,
        args=args,
        processing_class=job.tokenizer,
        train_dataset=table("train", job.rows, job.groups),
        eval_dataset=table("eval", job.evaluation, None) if job.evaluation else None,
        callbacks=[faults(here)],
    )
    found = job.fit(trainer)
    Share.mine = mine
    return found


STAGE = Stage(
    description="supervised fine-tuning that goes wrong",
    rows=frozenset({"chat"}),
    train=train,
    arguments="SFTConfig",
    defaults={"full": {"learning_rate": 2e-5}, "adapter": {"learning_rate": 2e-4}},
)
