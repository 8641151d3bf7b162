"""Protocol buffers' wire format: as much of it as CEL's trees need, so that no protobuf library is."""

from collections.abc import Callable, Iterator
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}


class Message:
    """The fields of one message by number, in their order."""

    def __init__(self, data: bytes) -> None:
        self._fields: list[tuple[int, int, bytes | int]] = []
        position = 0
        while position < len(data):
            key, position = _read_varint(data, position)
            wire_type = key & 7
            if wire_type == _VARINT:
                number, position = _read_varint(data, position)
                self._fields.append((key >> 3, wire_type, number))
            else:
                length, position = (
                    _read_varint(data, position) if wire_type == _BYTES else (_SIZES[wire_type], position)
                )
                self._fields.append((key >> 3, wire_type, data[position : position + length]))
                position += length

    def __contains__(self, field: int) -> bool:
        return any(number == field for number, _, _ in self._fields)

    def values(self, field: int) -> list[bytes]:
        """What a repeated field holds."""
        return [value for number, _, value in self._fields if number == field and isinstance(value, bytes)]

    def messages(self, field: int) -> list["Message"]:
        """The messages that a repeated field holds."""
        return list(map(Message, self.values(field)))

    def message(self, field: int) -> bytes:
        """Empty where the field is absent, as protobuf has it."""
        return (self.values(field) or [b""])[-1]

    def number(self, field: int) -> int:
        """A whole number; 0 where the field is absent."""
        found = [value for number, _, value in self._fields if number == field and isinstance(value, int)]
        return found[-1] if found else 0

    def string(self, field: int) -> str:
        """A text; empty where the field is absent."""
        return self.message(field).decode()

    def change(self, field: int, change: Callable[[bytes], bytes]) -> None:
        """Replace each of a field's values, which are texts or messages."""
        self._fields = [
            (number, wire_type, change(value) if number == field and isinstance(value, bytes) else value)
            for number, wire_type, value in self._fields
        ]

    def encode(self) -> bytes:
        """The message as it is written."""
        return b"".join(self._encoded())

    def _encoded(self) -> Iterator[bytes]:
        for number, wire_type, value in self._fields:
            yield _varint(number << 3 | wire_type)
            if isinstance(value, int):
                yield _varint(value)
            else:
                yield _varint(len(value)) + value if wire_type == _BYTES else value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
