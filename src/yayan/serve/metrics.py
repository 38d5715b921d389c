"""What the server has done and does, in Prometheus's text format."""

from yayan.serve.door import Door
from yayan.serve.jobs import Backend
from yayan.serve.queue import Queue


async def metrics_text(door: Door, queue: Queue, backend: Backend) -> str:
    """Ours, then the engine's own."""
    tokens = await backend.tokens()
    samples: dict[str, dict[str, float]] = {
        "yayan_requests_total counter": {f'status="{code}"': n for code, n in sorted(door.requests.items())},
        "yayan_request_seconds_total counter": {"": round(door.seconds, 3)},
        "yayan_requests_held gauge": {"": queue.held},
        "yayan_requests_possible gauge": {"": queue.most},
        "yayan_tokens_total counter": {f'kind="{kind}"': count for kind, count in tokens.items()},
    }
    lines = []
    for title, values in samples.items():
        name, kind = title.split()
        lines.append(f"# TYPE {name} {kind}")
        lines += [
            f"{name}{{{label}}} {value}" if label else f"{name} {value}" for label, value in values.items()
        ]
    return "\n".join(lines) + "\n" + await backend.metrics()
