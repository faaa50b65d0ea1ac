"""What a source of images can do, and the one that is a folder of this host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from pipeline.errors import BadImage, SetupError
from pipeline.images.decode import Limits, read_image
from pipeline.images.exclude import Exclude
from pipeline.images.failure import Failure
from pipeline.images.find import ImageFile, LeftOut, confined, find_images

Read = Callable[[ImageFile], bytes]


class ImageReader(Protocol):
    """Reads images below one root that were listed before."""

    def require(self) -> None:
        """Refuse to begin where the root cannot be used from this host.

        Raises:
            ImgrecError: it does not exist, does not answer, or refuses access.
        """

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        """Return a function that reads images, these in about this order; threads may share it.

        The function raises BadImage for what is wrong with one image, other errors for the rest.
        """


class ImageLister(Protocol):
    """Lists the images below one root."""

    @property
    def name(self) -> str:
        """The root as the job table and the manifest name it, e.g. /data/products or s3://b/p."""

    def find(
        self,
        exclude: Exclude | None = None,
        left_out: LeftOut | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> Iterator[ImageFile | Failure]:
        """Yield the images in ascending order of their paths, and what is wrong there.

        Args:
            left_out: counts what is left out on purpose.
            alive: called now and then before an image is yielded, where that may take long.
        """


class ImageSource(ImageReader, ImageLister, Protocol):
    """The images below one root, which can be listed and read."""

    def find_unordered(
        self, exclude: Exclude | None = None, left_out: LeftOut | None = None
    ) -> Iterator[ImageFile | Failure]:
        """Yield what `find` does, each as soon as it is known."""


class ImageFolder:
    """The images of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return str(self.folder)

    def find(
        self,
        exclude: Exclude | None = None,
        left_out: LeftOut | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> Iterator[ImageFile | Failure]:
        return find_images(self.folder, exclude, left_out, alive)

    def find_unordered(
        self, exclude: Exclude | None = None, left_out: LeftOut | None = None
    ) -> Iterator[ImageFile | Failure]:
        return self.find(exclude, left_out)

    def require(self) -> None:
        if not self.folder.is_dir():
            raise SetupError(
                f"The folder {self.folder} does not exist on this host: every embed worker must "
                "see the products folder under the same path."
            )
        if is_empty(self.folder):
            raise SetupError(
                f"The folder {self.folder} is empty on this host, as if its disk or share were not "
                "mounted: every embed worker must see the products in it."
            )

    def reading(self, images: Sequence[ImageFile], limits: Limits) -> AbstractContextManager[Read]:
        def read(image: ImageFile) -> bytes:
            try:
                return read_image(confined(self.folder, image.path), limits)
            except BadImage as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    self.require()  # a share that was unmounted is no fault of its images
                raise

        return nullcontext(read)


def is_empty(folder: Path) -> bool:
    """Tell whether a folder holds nothing but hidden files, as where nothing is mounted."""
    with os.scandir(folder) as entries:
        return all(entry.name.startswith(".") for entry in entries)
