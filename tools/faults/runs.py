"""Options of runs on several processes, and what runs leave on record."""

import json


def strategy(kind, processes, size, **options):
    """Options of `icve fit`: so many processes on CPUs, of which `size` share a sample's tokens."""
    options |= {"sequence_parallel_size": size, "process_group_backend": "gloo"}
    chosen = [f"--trainer.strategy.init_args.{name}={value}" for name, value in options.items()]
    return [
        f"--trainer.devices={processes}",
        f"--trainer.strategy=icve.training.distributed.strategies.{kind}",
        *chosen,
    ]


def steps(run):
    """Lines of RUN/steps.jsonl that are whole; none before the first."""
    file = run / "steps.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]
