"""What a job's folder holds."""


def contents(folder):
    """The files of the parts, without the records, which say who made them and when."""
    files = sorted(path for path in (folder / "parts").rglob("*") if path.is_file() and path.suffix != ".json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
