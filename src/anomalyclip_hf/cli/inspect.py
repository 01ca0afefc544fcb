"""`anomalyclip inspect`: look at a data set before anything is run on it, or export it."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.options import SourceOptions, option

FINE, PROBLEMS_FOUND = 0, 1


@dataclass
class Settings(SourceOptions):
    """Report what a data set holds and what is wrong with it, or export it as a datasets repository.

    anomalyclip inspect parts/ --contact-sheet sheet.png

    The source is a data set's name (with --data-dir), a folder, a table, a meta.json or a repository. Exit status:
    0 read, or exported; 1 problems were found, with --strict; 2 the source can't be used.
    """

    source: str | None = option(None, "Name, folder, table, meta.json or repository.", argument=True, rule="source")
    split: str = option("all", "One split, or all.")
    contact_sheet: str | None = option(
        None, "Write a sheet of samples, masks outlined, there (.png or .jpg).", rule="file"
    )
    strict: bool = option(False, "End with status 1 where there is any problem.")
    limit: int = option(10, "Examples shown of each problem, 0 or more.", rule=range(2**31))
    num_workers: int | None = option(None, "Reading threads; as many as cores, at most 8.")
    progress: bool = option(True, "Show a bar.")
    export: str | None = option(
        None, "Folder to write, or owner/name with --push, in place of the report.", group="Export"
    )
    push: bool = option(False, "Upload to the Hub instead of writing a folder.", group="Export")
    public: bool = option(False, "With --push: make the repository public.", group="Export")
    license: str | None = option(None, "Id of the licence, where you know it; never guessed.", group="Export")
    license_note: str | None = option(None, "What the card says of the licence, in words.", group="Export")
    overwrite: bool = option(False, "Replace an existing export.", group="Export")

    def __post_init__(self):
        super().__post_init__()
        if not self.source:
            raise ValueError("there is no source: give a name, a folder, a table, a meta.json or a repository")
        if self.export and (self.contact_sheet or self.strict or self.split != "all"):
            raise ValueError("--export writes all splits and no report: leave --contact-sheet, --strict, --split out")
        only_export = (self.push, self.public, self.license, self.license_note, self.overwrite)
        if not self.export and any(only_export):
            raise ValueError(
                "--push, --public, --license, --license-note and --overwrite belong to --export: give a folder or name"
            )


def run(settings: Settings) -> int:
    """Look at a data set or export it; see [`Settings`] for the exit status."""
    if settings.export:
        import datasets

        from ..data.export import export_source

        if not settings.progress:
            datasets.disable_progress_bars()
        noted = {"license_note": settings.license_note} if settings.license_note else {}
        where = export_source(
            settings.source,
            settings.export,
            options=settings,
            push=settings.push,
            private=not settings.public,
            license=settings.license,
            overwrite=settings.overwrite,
            **noted,
        )
        print(where)
        return FINE
    from ..data.inspect import inspect_source

    report = inspect_source(
        settings.source,
        split=settings.split,
        options=settings,
        contact_sheet=settings.contact_sheet,
        progress=settings.progress,
        num_workers=settings.num_workers,
    )
    print(report.to_text(settings.limit))
    if settings.contact_sheet:
        print(f"contact sheet: {settings.contact_sheet}")
    return PROBLEMS_FOUND if settings.strict and report.problems else FINE
