"""Texts on which a quantization is calibrated, for `export` and `quantize`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import SpecError
from funnel_export.progress import Progress
from funnel_export.quality.tables import check_places
from funnel_export.spec.data import DataSpec, Places
from funnel_export.spec.defaults import CALIBRATION_LENGTH, CALIBRATION_TOKENS, SEED
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.quantization import Method, Quantization

if TYPE_CHECKING:
    from funnel_export.quality.calibration import Calibration


@dataclass(frozen=True, slots=True)
class CalibrationTexts:
    """Texts for a method that reads some."""

    data: DataSpec
    tokens: int
    """Most tokens that are used."""

    def calibration(self, source: Checkpoint, spec: ExportSpec, progress: Progress) -> "Calibration":
        """Read the texts.

        Raises:
            DataError: if they cannot be read, or have no tokens.
            CheckpointError: if the checkpoint has no tokenizer.
        """
        from funnel_export.quality.calibration import Calibration
        from funnel_export.quality.shuffled import shuffled_rows

        progress("reading texts")
        length = min(CALIBRATION_LENGTH, source.architecture.max_position_embeddings)
        rows = shuffled_rows(source, self.data, tokens=self.tokens, length=length, seed=SEED)
        return Calibration(source, spec, rows, progress)


def chosen_texts(
    quantization: Quantization | None, data: DataSpec | Places | None, tokens: int | None
) -> CalibrationTexts | None:
    """The texts of a quantization; None for one that reads none, and without a quantization.

    Raises:
        SpecError: if there are texts and nothing reads them, or the other way round; or if the package is missing.
        DataError: if a file is missing.
    """
    method = None if quantization is None else quantization.method
    if method is None or not method.reads_texts:
        if data is not None or tokens is not None:
            raise SpecError(
                "texts are given, and nothing reads them",
                got=f"{'data' if data is not None else 'tokens'} and {f'method {method}' if method else 'no bits'}",
                wanted=f"a method that is calibrated: {Method.GPTQ}",
                hint="--method gptq, or no --data and --tokens",
            )
        return None
    if data is None:
        raise SpecError(f"method {method} needs texts", got="no data", wanted="texts", hint="--data FILE")
    found = CalibrationTexts(DataSpec.of(data), CALIBRATION_TOKENS if tokens is None else tokens)
    check_places(found.data)
    from funnel_export.quality.gptq import load_gptq

    load_gptq()
    return found
