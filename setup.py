"""What pyproject.toml can't say: the C core, and one wheel a platform for CPython 3.11 and later (stable ABI)."""

import sysconfig

from setuptools import setup

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # which has no stable ABI before 3.15

setup(
    cffi_modules=["cffi_build/build_cgear.py:ffibuilder", "cffi_build/build_cgear.py:rules_builder"],
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
