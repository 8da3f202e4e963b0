"""The `icve` command, also installed as `lightning`: dispatches to one module per subcommand.

Nothing heavy is imported until a subcommand is known.
"""

import difflib
import importlib
import logging
import sys

from icve.data.media.media_paths import refuse_foreign
from icve.runtime.gpu_allocator import set_up_allocator
from icve.runtime.printable import forgive_output
from icve.runtime.threads import set_up_threads

# They warn of parts of torchao, where it is installed, that nothing here uses.
NOISY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
USAGE = 2  # exit status of an error the user can correct

COMMANDS = {
    "demo": "the whole story on synthetic videos: icve demo",
    "synthesize": "make synthetic videos: icve synthesize pairs --seed 0 --count 100 --output data/pairs",
    "curate": "raw videos to training pairs: icve curate pipelines/clip_pairs.yaml --input raw/ --output data/clips",
    "encode": "latents of a training set, once: icve encode -c configs/demo/sft.yaml --output runs/latents",
    "inspect-data": "what training will see of a manifest: icve inspect-data data/clips.parquet --buckets 240x384x77",
    "plan": "memory, FLOPs and time of a run: icve plan -c configs/sft.yaml --gpus 64 --gpu_memory 80",
    "fit": "train a stage: icve fit -c configs/demo/pretrain.yaml",
    "validate": "losses of a checkpoint: icve validate -c runs/demo/sft/config.yaml --ckpt_path runs/demo/sft",
    "edit": "edit videos: icve edit --input clips/ --instruction 'make the circle red' --output runs/out",
    "eval": "how good edits are: icve eval synthetic --results runs/out/results.jsonl --truth runs/truth",
    "convert": "checkpoints and adapters to other layouts: icve convert weights --input runs/sft --output exported",
}
MODULES = {name: f"icve.cli.{name.replace('-', '_')}" for name in COMMANDS}
MODULES |= {"demo": "icve.cli.demo.run", "validate": "icve.cli.fit", "eval": "icve.cli.evaluate"}
OWN_CHECKS = ("curate", "encode", "edit", "eval")  # of paths: not every argument is one

HELP = """usage: icve COMMAND [options]      (lightning COMMAND and python -m icve COMMAND are the same)

Train instruction-based video editors that learn in context.

commands:
{commands}

examples:
  icve fit -c configs/demo/pretrain.yaml
  icve fit -c configs/demo/sft.yaml --ckpt_path runs/demo/pretrain     starts the stage from those weights
  icve fit -c configs/demo/sft.yaml --ckpt_path runs/demo/sft          resumes the stage
  icve fit -c configs/demo/sft.yaml --trainer.max_steps 50 --print_config
  icve plan -c configs/pretrain_480p.yaml --gpus 8 64 256 --gpu_memory 80
  icve inspect-data data/clips.parquet -c configs/pretrain_480p.yaml --output runs/inspection

`icve COMMAND --help` explains a command. icve-edit, icve-curate, icve-encode and icve-eval are other names of theirs.
Exit status: 0 done, 1 failed, 2 wrong usage, 3 some items failed.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes them from the process.

    Returns:
        The exit status: 0, 1 (a run failed), 2 (an error the user can correct), 3 (some items failed).
    """
    set_up_threads()
    set_up_allocator()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    forgive_output()
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<14}{text}" for name, text in COMMANDS.items())), end="")
        return 0 if arguments else USAGE
    if arguments[0] == "--version":
        from icve import __version__

        print(f"icve {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        meant = f": did you mean {nearest[0]!r}?" if nearest else "."
        return fail(f"there is no command {command!r}{meant} icve --help lists them.")
    try:
        refuse_foreign(rest if command not in OWN_CHECKS else ())
    except ValueError as error:
        return fail(str(error))
    module = importlib.import_module(MODULES[command])
    return module.main(arguments if MODULES[command] == "icve.cli.fit" else rest) or 0


def fail(message: str, status: int = USAGE) -> int:
    """Print an error; returns the exit status."""
    print(f"icve: error: {message}", file=sys.stderr)
    return status
