"""Numpy evaluation of the `com.microsoft` operators; the table of all kernels is `table.CONTRIB_KERNELS`."""
