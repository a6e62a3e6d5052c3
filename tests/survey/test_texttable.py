from hypothesis import example, given
from hypothesis import strategies as st

from hpcqa.survey.texttable import find_header


@given(st.binary(max_size=400))
@example(b"SIMPLE\r=  T,\r")
@example(b'"\r\0,expnum')
@example(b"expnum," + b"x" * 200_000)
def test_any_bytes_are_a_header_or_none(start):
    header = find_header(start, "expnum", ("ccdnum",))
    assert header is None or "expnum" in [name.lower() for name in header.names]


def test_the_header_is_found_behind_remarks_and_tells_units():
    text = "# %ECSV 1.0\n# - {name: exptime, unit: s, datatype: float32}\n# of May\nexpnum;ccdnum;exptime\n1;2;3\n"
    header = find_header(text.encode(), "expnum", ("ccdnum",))
    assert (header.names, header.delimiter, header.first_row) == (("expnum", "ccdnum", "exptime"), ";", 4)
    assert header.units == {"exptime": "s"}


def test_a_remark_that_names_the_column_alone_is_no_header():
    header = find_header(b"# expnum, as counted\n#expnum,ccdnum\n1,2\n", "expnum", ("ccdnum",))
    assert (header.names, header.first_row) == (("expnum", "ccdnum"), 2)
