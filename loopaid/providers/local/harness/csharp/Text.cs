// JSON texts as they grow, in UTF-8.

using System;
using System.Globalization;

namespace Loopaid {

sealed class JsonText {
    const int UsualBytes = 1 << 16;
    const string Escapes = "btn?fr";  // of the characters 8 to 13
    const string Hex = "0123456789abcdef";

    public byte[] Bytes = new byte[UsualBytes];
    public int Length;

    public void Clear() {
        if (Bytes.Length > 1 << 20) Bytes = new byte[UsualBytes];
        Length = 0;
    }

    public void Room(int more) {
        if (Bytes.Length - Length >= more) return;
        Array.Resize(ref Bytes, checked((int)Math.Max(2L * Bytes.Length, (long)Length + more)));
    }

    public void Byte(char letter) {
        Room(1);
        Bytes[Length++] = (byte)letter;
    }

    public void Append(JsonText other) {
        Room(other.Length);
        Buffer.BlockCopy(other.Bytes, 0, Bytes, Length, other.Length);
        Length += other.Length;
    }

    public void Ascii(string text) {
        Room(text.Length);
        foreach (char letter in text) Bytes[Length++] = (byte)letter;
    }

    public void Integer(long value) {
        if (value == long.MinValue) {
            Ascii("-9223372036854775808");
            return;
        }
        if (value < 0) {
            Byte('-');
            value = -value;
        }
        int digits = 1;
        for (long rest = value; rest > 9; rest /= 10) digits++;
        Room(digits);
        Length += digits;
        for (int each = 1; each <= digits; each++, value /= 10) Bytes[Length - each] = (byte)('0' + value % 10);
    }

    /// As Python does: digits alone from 0.0001 to 1e16, an exponent beyond, and always told from an integer.
    public void Float(double value, bool single) {
        if (BitConverter.DoubleToInt64Bits(value) < 0) {
            Byte('-');
            value = -value;
        }
        if (value == 0) {
            Ascii("0.0");
            return;
        }
        int exponent;
        string digits = Numbers.Shortest(value, single, out exponent).ToString(CultureInfo.InvariantCulture);
        int point = digits.Length + exponent;  // where it stands in the digits
        if (point > 16 || point < -3) {
            Ascii(digits.Length == 1 ? digits : digits.Insert(1, "."));
            Ascii(point > 0 ? "e+" : "e-");
            if (Math.Abs(point - 1) < 10) Byte('0');
            Integer(Math.Abs(point - 1));
        } else if (point <= 0) {
            Ascii("0." + new string('0', -point) + digits);
        } else if (exponent >= 0) {
            Ascii(digits + new string('0', exponent) + ".0");
        } else {
            Ascii(digits.Insert(point, "."));
        }
    }

    /// False when it has half a surrogate pair, which no UTF-8 can say: a `?` stands in its place.
    public bool String(string text) {
        bool whole = true;
        Room(checked(6 * text.Length + 2));
        byte[] bytes = Bytes;
        int at = Length;
        bytes[at++] = (byte)'"';
        for (int each = 0; each < text.Length; each++) {
            char letter = text[each];
            if (letter < 0x20 || letter == '"' || letter == '\\') {
                at = Escape(at, letter);
            } else if (letter < 0x80) {
                bytes[at++] = (byte)letter;
            } else if (!char.IsSurrogate(letter)) {
                at = Utf8(at, letter);
            } else if (char.IsHighSurrogate(letter) && each + 1 < text.Length && char.IsLowSurrogate(text[each + 1])) {
                at = Utf8(at, char.ConvertToUtf32(letter, text[++each]));
            } else {
                bytes[at++] = (byte)'?';
                whole = false;
            }
        }
        bytes[at++] = (byte)'"';
        Length = at;
        return whole;
    }

    int Utf8(int at, int code) {
        if (code >= 0x10000) {
            Bytes[at++] = (byte)(0xF0 | code >> 18);
            Bytes[at++] = (byte)(0x80 | code >> 12 & 0x3F);
        } else if (code >= 0x800) {
            Bytes[at++] = (byte)(0xE0 | code >> 12);
        }
        if (code >= 0x800) Bytes[at++] = (byte)(0x80 | code >> 6 & 0x3F);
        else Bytes[at++] = (byte)(0xC0 | code >> 6);
        Bytes[at++] = (byte)(0x80 | code & 0x3F);
        return at;
    }

    int Escape(int at, int code) {
        Bytes[at++] = (byte)'\\';
        if (code == '"' || code == '\\') {
            Bytes[at++] = (byte)code;
        } else if (code >= 8 && code <= 13 && code != 11) {
            Bytes[at++] = (byte)Escapes[code - 8];
        } else {
            Bytes[at++] = (byte)'u';
            for (int shift = 12; shift >= 0; shift -= 4) Bytes[at++] = (byte)Hex[code >> shift & 15];
        }
        return at;
    }
}
}
