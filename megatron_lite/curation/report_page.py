"""The numbers of report.json as report.html shows them: rounded, sorted, drawn."""

from collections import Counter
from typing import Any

from markupsafe import Markup

from megatron_lite.curation.charts import Bars, histogram

Json = dict[str, Any]

TITLES = {
    "ingest": "Read",
    "filter": "Rules of the sources",
    "url": "Documents of one URL",
    "text": "Documents of one text",
    "fuzzy": "Near duplicates",
    "paragraphs": "Paragraphs that occur again",
    "lines": "Lines that occur again",
    "substring": "Passages that occur again",
}
LANGUAGES_SHOWN = 20


def page_of(report: Json) -> Json:
    """What the template report.html reads."""
    return {
        "name": report["name"],
        "kind": "curation",
        "summary": summary(report),
        "figures": figures(report),
        "funnel": funnel(report),
        "sources": sources(report),
        "stages": [stage(one) for one in report["stages"]],
        "lengths": lengths(report),
        "languages": languages(report),
        "clusters": clusters(report),
        "throughput": [throughput(row) for row in report["throughput"]],
        "rules": [rule(name, count) for one in report["stages"] for name, count in one.get("rules", {}).items()],
        "tokens": [(prefix, f"{tokens:,}") for prefix, tokens in report["tokens"].items()],
        "training_report": report["training_report"],
        "config": report["config"],
    }


def summary(report: Json) -> list[str]:
    sources, stages = len(report["content"]), len(report["stages"])
    return [f"{sources} sources", f"{stages} stages", f"{report['workers']} workers, engine {report['engine']}"]


def figures(report: Json) -> list[tuple[str, str, str]]:
    """(value, name, remark) of the numbers one looks for first."""
    entered, left = report["stages"][0]["total"]["entered"], corpus_size(report)
    size = report["stages"][0]["total"]["left"]
    seconds = sum(row["seconds"] for row in report["throughput"])
    refused = entered[0] - size[0]
    return [
        (f"{size[0]:,}", "documents read", f"{megabytes(size[1])} MB; {refused:,} records set aside"),
        (f"{left[0]:,}", "documents kept", f"{share(left[0], size[0])} of those read"),
        (f"{megabytes(left[1])} MB", "text kept", f"{share(left[1], size[1])} of what was read"),
        (f"{left[2] / 1e6:,.2f} M", "words kept", "of the splitter, symbols left out"),
        (f"{rate(size[1], seconds)} MB/s", "a worker", f"all stages together, {seconds:,.0f} s of work"),
    ]


def corpus_size(report: Json) -> list[int]:
    sizes = [flow["left"] for part in report["corpus"].values() for flow in part.values()]
    return [sum(column) for column in zip(*sizes, strict=True)] if sizes else [0, 0, 0]


def funnel(report: Json) -> list[Json]:
    """What came into each stage and what of it stayed, with the width of its bar in per cent of the text read."""
    whole = report["stages"][0]["total"]["left"][1] or 1
    rows, size_now = [], report["stages"][0]["total"]["left"]
    for one in report["stages"]:
        total = one["total"]
        if one["name"] != "ingest":
            # Sources that a stage does not look at pass by.
            size_now = [
                now - there + left for now, there, left in zip(size_now, total["entered"], total["left"], strict=True)
            ]
        rows.append(
            {
                "name": TITLES[one["name"]],
                "anchor": one["name"],
                "entered": f"{total['entered'][0]:,}",
                "dropped": f"{total['entered'][0] - total['left'][0]:,}",
                "cut": megabytes(total["edited"][1]),
                "documents": f"{size_now[0]:,}",
                "megabytes": megabytes(size_now[1]),
                "words": f"{size_now[2]:,}",
                "width": f"{100 * size_now[1] / whole:.1f}",
            }
        )
    return rows


def sources(report: Json) -> list[Json]:
    """What was read of each source and what has come of it."""
    rows = []
    for name, flow in report["stages"][0]["sources"].items():
        train, valid = (report["corpus"][part].get(name, {"left": [0, 0, 0]})["left"] for part in ("train", "valid"))
        kept = [a + b for a, b in zip(train, valid, strict=True)]
        read, refused = flow["left"], flow["entered"][0] - flow["left"][0]
        rows.append(
            {
                "name": name,
                "content": report["content"][name],
                "refused": f"{refused:,}",
                "read": (f"{read[0]:,}", megabytes(read[1])),
                "kept": (f"{kept[0]:,}", megabytes(kept[1]), f"{kept[2]:,}"),
                "share": share(kept[1], read[1]),
                "valid": f"{valid[0]:,}",
            }
        )
    return rows


def stage(one: Json) -> Json:
    """A stage's reasons, the most frequent first, each by source and with its examples."""
    total = one["total"]
    reasons = sorted(total["dropped"].items(), key=lambda item: (-item[1][0], item[0]))
    return {
        "name": TITLES[one["name"]],
        "anchor": one["name"],
        "tasks": one["tasks"],
        "reasons": [
            {
                "name": name,
                "meaning": one["reasons"][name],
                "documents": f"{size[0]:,}",
                "megabytes": megabytes(size[1]),
                "share": share(size[0], total["entered"][0]),
                "sources": ", ".join(
                    f"{source} {flow['dropped'][name][0]:,}"
                    for source, flow in one["sources"].items()
                    if name in flow["dropped"]
                ),
                "examples": [example(record) for record in one["examples"][name]],
            }
            for name, size in reasons
        ],
        "notes": [
            f"{name.replace('_', ' ')}: {count:,}"
            for key in ("mended", "removed")
            for name, count in one.get(key, {}).items()
            if count
        ],
        "sources": [
            (source, *(f"{number:,}" for number in (flow["entered"][0], flow["left"][0])), megabytes(flow["left"][1]))
            for source, flow in one["sources"].items()
        ],
    }


def example(record: Json) -> tuple[str, str]:
    """(where it is and what is wrong with it, a piece of it)"""
    place = [record.get("id") or record["where"], record.get("url"), record["detail"]]
    return " · ".join(part for part in place if part), record["excerpt"]


def lengths(report: Json) -> Markup:
    """Documents by their number of words, as read and as kept."""
    read = report["stages"][0]["total"]["lengths"]
    kept: Counter[str] = Counter()
    for part in report["corpus"].values():
        for flow in part.values():
            kept.update(flow["lengths"])
    bits = sorted({int(bit) for bit in (*read, *kept)})
    names = {str(bit): length_label(bit) for bit in range(bits[0], bits[-1] + 1)} if bits else {}
    rows = [
        Bars("as read", {names[bit]: count for bit, count in read.items()}, "read"),
        Bars("as kept", {names[bit]: count for bit, count in kept.items()}, "kept"),
    ]
    return Markup(histogram("documents by length in words", list(names.values()), rows, "documents"))


def length_label(bits: int) -> str:
    """The least number of words of a bin."""
    least = 1 << (bits - 1) if bits else 0
    return str(least) if least < 1024 else f"{least // 1024}k" if least < 1 << 20 else f"{least >> 20}M"


def languages(report: Json) -> list[tuple[str, str, str]]:
    """(language, documents, share) of what is kept, the most frequent first."""
    counts: Counter[str] = Counter()
    for part in report["corpus"].values():
        for flow in part.values():
            counts.update(flow["languages"])
    whole = sum(counts.values())
    return [(name, f"{count:,}", share(count, whole)) for name, count in counts.most_common(LANGUAGES_SHOWN)]


def clusters(report: Json) -> Markup | None:
    """Clusters of near duplicates by size, in powers of two."""
    sizes = next((one["cluster_sizes"] for one in report["stages"] if "cluster_sizes" in one), None)
    if not sizes:
        return None
    counts: Counter[int] = Counter()
    for size, count in sizes.items():
        counts[int(size).bit_length()] += count
    names = {bits: f"{1 << (bits - 1)}–{(1 << bits) - 1}" for bits in range(min(counts), max(counts) + 1)}
    rows = [Bars("clusters of so many documents", {names[bits]: count for bits, count in counts.items()}, "kept")]
    return Markup(histogram("clusters by size", list(names.values()), rows, "clusters"))


def throughput(row: Json) -> Json:
    return {
        "name": row["stage"],
        "tasks": f"{row['tasks']:,}",
        "text": megabytes(row["text_bytes"]),
        "read": megabytes(row["input_bytes"]),
        "written": megabytes(row["output_bytes"]),
        "seconds": f"{row['seconds']:,.1f}",
        "rate": rate(row["text_bytes"], row["seconds"]),
        "cpu_rate": rate(row["text_bytes"], row["cpu_seconds"]),
    }


def rule(name: str, count: Json) -> Json:
    return {
        "name": name,
        "documents": f"{count['documents']:,}",
        "edited": f"{count.get('edited', 0):,}",
        "seconds": f"{count['seconds']:,.1f}",
        "rate": rate(count["bytes"], count["seconds"]),
    }


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def rate(count: float, seconds: float) -> str:
    """Megabytes a second."""
    return f"{count / 1e6 / seconds:,.1f}" if seconds else "–"
