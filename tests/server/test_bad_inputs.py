"""Which tests show each of the bad inputs that a server of either protocol must survive: one table."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server import (
    test_grpc_infer,
    test_http_bad_requests,
    test_http_calls,
    test_http_clients,
    test_large_json,
    test_repository,
    test_repository_layout,
)

HTTP = {case[0] for case in test_http_bad_requests.STATUSES} | set(test_http_bad_requests.FRAMING)
GRPC = {case[0] for case in test_grpc_infer.WRONG}

BAD = test_http_bad_requests
RPC = test_grpc_infer

# The bad input, its cases in the tables of HTTP and of gRPC, and further tests.
LINES: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[Any, ...]], ...] = (
    ("body over the limit", ("body over the limit", "chunked body over the limit"), (),
     (RPC.test_a_message_over_the_limit, test_large_json.test_too_many_values_beside_the_lists_of_numbers)),
    ("slow body", ("slow body", "slow chunks"), (),
     (BAD.test_many_slow_clients_hold_nobody_up, BAD.test_slow_headers_end_the_connection)),
    ("wrong Content-Length",
     ("two lengths that differ", "a list of lengths", "length +", "length -1", "length in hex", "length 2^70",
      "length 2^63", "length and chunks", "a request in a body"), (),
     (BAD.test_a_body_that_ends_too_early, BAD.test_good_framing)),
    ("gzip bomb", ("gzip bomb", "deflate bomb", "gzip of many members"), (), (RPC.test_a_message_over_the_limit,)),
    ("Inference-Header-Content-Length out of range or negative",
     ("header length past the end", "header length negative", "header length of 5 kB", "header length too short"),
     (), ()),
    ("JSON depth 101", ("depth 101", "depth 40,000"), (),
     (test_large_json.test_deep_lists_of_numbers_are_refused_soon,)),
    ("NaN, Infinity, 1e400", ("NaN", "Infinity", "1e400", "FP32 1e39", "FP16 70000", "BF16 1e39"), (),
     (test_large_json.test_a_number_that_overflows_is_named,)),
    ("ints over int64", ("INT64 2^63", "INT64 2^64", "UINT8 256", "number of 5000 digits", "int over int64"), (),
     (RPC.test_contents_that_do_not_fit_their_type,)),
    ("lone surrogates", ("lone surrogate", "not UTF-8"), (), (RPC.test_bytes_that_are_no_message,)),
    ("data count and shape product differ", ("count and shape",), ("shape",), ()),
    ("shape product overflow", ("shape overflow",), ("overflow", "huge", "huge and empty"), ()),
    ("negative dims", ("negative dims",), ("negative",), ()),
    ("ragged lists", ("ragged lists",), (), (test_large_json.test_large_bodies_are_read_as_small_ones_are,)),
    ("string for number", ("string for number", "null", "BOOL 1", "INT32 1.0"), (), ()),
    ("BYTES tensor with a length prefix past the end", ("BYTES length past the end",), (), ()),
    ("raw size and shape x dtype differ", ("raw too short", "raw past the end", "raw left over", "raw size negative"),
     ("raw too short", "raw for no input"), ()),
    ("duplicate inputs or outputs", ("input twice", "output twice"), ("input twice", "output twice"), ()),
    ("unknown output", ("unknown output",), ("output",), ()),
    ("datatype not in the list", ("unknown datatype",), ("datatype",), ()),
    ("names with .., /, %2f, NUL, 10 kB",
     ("name ..", "name %2e%2e", "name with %2f", "address with ..", "name with NUL", "name of 3 kB", "name of 10 kB"),
     ("name with ..", "name with NUL", "name of 10 kB"), ()),
    ("version -1, 2^64", ("version -1", "version 2^64"), ("version -1", "version"), ()),
    ("client gone mid-body", (), (), (BAD.test_clients_that_go_in_the_middle_of_a_body,)),
    ("client gone mid-compute", (), (),
     (BAD.test_clients_that_go_during_a_run_end_it, RPC.test_a_client_that_goes_away_ends_its_run)),
    ("cancel", (), (), (RPC.test_cancelling_ends_the_run, RPC.test_a_cancelled_stream_ends_its_runs)),
    ("deadline 0", (), (), (BAD.test_a_timeout_covers_the_run, RPC.test_a_deadline_ends_the_run)),
    ("admin: path escape", ("load of a path", "load of ..", "load of files", "log file", "trace file"), (),
     (test_http_calls.test_administration_needs_the_admin_port_and_its_token, test_http_clients.test_repository)),
    ("admin: symlinked repository", (), (), (test_repository_layout.test_a_link_out_of_the_repository_is_refused,)),
    ("admin: half-copied version", (), (), (test_repository.test_a_file_that_is_being_written_waits,)),
    ("admin: concurrent load and unload of one model", (), (),
     (test_repository.test_loads_and_unloads_of_one_model_at_once,)),
    ("admin: unload during inference", (), (), (BAD.test_unloading_during_a_run,)),
    ("admin: reload to a broken version", (), (), (test_repository.test_a_reload_that_fails_keeps_what_was_there,)),
    ("admin: browser-origin requests", ("another host's address",), (), (BAD.test_hosts_and_origins,)),
)  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=[line[0] for line in LINES])
def test_every_line_is_tested(line: tuple[str, tuple[str, ...], tuple[str, ...], tuple[Any, ...]]) -> None:
    _, http, grpc, tests = line
    assert set(http) <= HTTP
    assert set(grpc) <= GRPC
    assert http or grpc or tests
    assert all(test.__name__.startswith("test_") for test in tests)
