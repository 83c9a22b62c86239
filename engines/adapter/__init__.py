"""What an adapter is: its base, its manifest, and the check that it must pass before any engine sees it.

No model library is needed: safetensors headers are parsed here, and numpy finds NaN and Inf.
"""

from engines.adapter.base import BaseModel, base_hash_of, read_base
from engines.adapter.directory import WEIGHTS_FILE
from engines.adapter.install import install
from engines.adapter.manifest import Manifest, ProbeRecord, read_manifest, tensor_hashes, write_manifest
from engines.adapter.parcel import Parcel, pack
from engines.adapter.verify import VerifiedAdapter, verify

__all__ = [
    "WEIGHTS_FILE",
    "BaseModel",
    "Manifest",
    "Parcel",
    "ProbeRecord",
    "VerifiedAdapter",
    "base_hash_of",
    "install",
    "pack",
    "read_base",
    "read_manifest",
    "tensor_hashes",
    "verify",
    "write_manifest",
]
