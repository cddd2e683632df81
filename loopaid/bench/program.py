"""The trivial program. The daemon gets this file as it is, the other executors call the function."""


def main(input_data: dict[str, int]) -> dict[str, int]:
    return {"output": input_data["value"] * 2}
