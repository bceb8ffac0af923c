"""What a recipe says about data files. Importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from assay.config import Config

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class FileSource(Config):
    """Where rows come from: a file, a folder, several of them, or a Hugging Face hub id."""

    path: str | tuple[str, ...] | None = Field(
        default=None,
        description="file, folder or list of them (jsonl, json, csv, tsv, parquet, txt, each also .gz), or a hub id",
    )
    format: str = Field(default="auto", description="name of the row format; `assay data formats` lists them")
    include: str = Field(default="**/*", description="glob that picks the files when a path is a folder")
    split: str = Field(default="train", description="which split to take when the path is a hub id")
    subset_size: PositiveInt | None = Field(
        default=None, description="use this many rows, drawn by seed (first ones if streaming)"
    )
    streaming: bool = Field(
        default=False, description="read only as many rows as `subset_size` asks for; for what is too big"
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The path or paths, always as a tuple."""
        if self.path is None:
            return ()
        return (self.path,) if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _streaming_needs_an_end(self) -> Self:
        if self.streaming and self.subset_size is None:
            raise ValueError("streaming reads an unbounded source, so it needs subset_size as well")
        return self


class CleanConfig(Config):
    """Which rows to drop. Every rule counts what it dropped and keeps examples. Lengths are characters."""

    drop_invalid: bool = Field(
        default=True, description="drop and count rows without usable text; false: refuse the file"
    )
    artefacts: bool = Field(
        default=True, description="drop text with markup remains, mojibake or template placeholders"
    )
    control_characters: bool = Field(
        default=True, description="drop text with control characters other than tab and newline"
    )
    identical: bool = Field(default=True, description="drop pairs whose two responses are the same text")
    exact_duplicates: bool = Field(default=True, description="keep only the first of several identical rows")
    near_duplicates: Fraction = Field(
        default=0.0, description="drop rows whose estimated similarity (Jaccard) exceeds it; 0 = off"
    )
    max_prompt_chars: PositiveInt | None = Field(default=None, description="drop longer prompts; none = keep")
    max_response_chars: PositiveInt | None = Field(
        default=None, description="drop rows with a longer response; none = keep"
    )
    min_response_chars: NonNegativeInt = Field(default=1, description="drop rows with a shorter response")
    script: str | None = Field(
        default=None, description='keep text mostly in this Unicode script, e.g. "latin"; none = keep all'
    )
    max_repetition: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="drop responses with a larger share of repeated 4-grams of words; none = keep",
    )


class FileData(FileSource):
    """Data from files. Without a purpose's own source, everything is taken from `path`.

    A pair file alone also gives demonstrations (its chosen responses) and prompts.
    """

    demonstrations: FileSource | None = Field(
        default=None, description="a source of its own for supervised fine-tuning"
    )
    preferences: FileSource | None = Field(
        default=None, description="a source of its own for reward and preference training"
    )
    prompts: FileSource | None = Field(
        default=None, description="a source of its own for the prompts that a policy answers"
    )
    text: FileSource | None = Field(default=None, description="raw documents for pretraining")
    objectives: dict[str, str] = Field(
        default={},
        description="objective → glob of the sources whose comparisons asked about it, e.g. {harmless: harmless-*}; "
        "rows may also say so themselves, in a column `objective`",
    )
    clean: CleanConfig = Field(default=CleanConfig(), description="which rows to drop")
    balance_by: Literal["none", "source", "kind"] = Field(
        default="none", description="cut every source or kind to the size of the smallest"
    )
    validation_split: Fraction = Field(default=0.1, description="share of the prompts held out to steer training")
    test_split: Fraction = Field(default=0.1, description="share of the prompts held out for the final numbers")
    split_by: Literal["opening", "prompt"] = Field(
        default="opening",
        description="what may not straddle two splits: dialogues with one opening turn, or equal prompts",
    )
    decontaminate: bool = Field(
        default=False, description="drop training rows whose prompt shares a run of 8 words with a held-out prompt"
    )

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        if not any((self.paths, self.demonstrations, self.preferences, self.prompts, self.text)):
            raise ValueError("no data: give a path, or a source for demonstrations, preferences, prompts or text")
        if self.validation_split + self.test_split >= 1:
            raise ValueError("validation_split and test_split leave nothing to train on: their sum must be below 1")
        return self
