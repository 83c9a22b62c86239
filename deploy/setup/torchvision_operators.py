"""Lets torchvision's default build be imported beside a CPU-only torch.

The build on the default index is compiled for CUDA; its C++ operators do not load here, and `import torchvision` raises
"operator torchvision::nms does not exist". Declaring the two operators that it expects is enough for its transforms,
which are plain torch. `make setup` puts this file and a `.pth` line that imports it into the virtual environment, only
where that import fails, so that it holds in every process that vLLM spawns. It is not part of the run-time packages.
"""

import sys

_libraries = []  # a torch.library.Library undoes its definitions when it is collected


class _DeclareOperatorsFirst:
    """A meta path finder that finds nothing. It is there at every start, so it imports as little as it can."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname == "torchvision" and not _libraries:
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _libraries.append(library)


sys.meta_path.insert(0, _DeclareOperatorsFirst)
