from components.errors import HstuflowError, InputError, SourceUnreachableError


def test_an_error_is_one_sentence_with_what_where_observed_expected_and_what_to_do():
    error = InputError(
        "is not a number", where="log.csv:3:rating", observed="'four'", expected="1 to 5", todo="Mend it"
    )
    assert str(error) == "log.csv:3:rating: is not a number: observed 'four', expected 1 to 5. Mend it"


def test_an_error_stays_on_one_line_whatever_it_quotes():
    assert "\n" not in str(HstuflowError("cannot be read", observed="two\nlines"))


def test_errors_carry_the_http_status_that_the_service_answers():
    assert (InputError("x").http_status, SourceUnreachableError("x").http_status) == (400, 503)
