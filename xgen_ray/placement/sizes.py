"""Byte sizes for people."""

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def gib(size_bytes: int) -> str:
    """``size_bytes`` for a message: GiB with one decimal, MiB below one GiB.

    Decimals are cut only by rounding to nearest, so two sizes that differ by less than a tenth of a GiB
    may read the same; :func:`gib_pair` keeps them apart.
    """
    if abs(size_bytes) < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"


def gib_pair(needed_bytes: int, free_bytes: int) -> tuple[str, str]:
    """Both sizes, precise enough that an unequal pair never reads as equal."""
    needed, free = gib(needed_bytes), gib(free_bytes)
    if needed != free or needed_bytes == free_bytes:
        return needed, free
    needed, free = f"{needed_bytes / MIB:,.0f} MiB", f"{free_bytes / MIB:,.0f} MiB"
    return (needed, free) if needed != free else (f"{needed_bytes:,} bytes", f"{free_bytes:,} bytes")
