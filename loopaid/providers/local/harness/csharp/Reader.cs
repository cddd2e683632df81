// JSON texts to values.

using System;
using System.Collections.Generic;
using System.Numerics;
using System.Text;

namespace Loopaid {

sealed class JsonError : Exception {
    public JsonError(string message) : base(message) {}
}

/// One value after the other, from UTF-8: null, bool, long (beyond it BigInteger), double, string, List<object>,
/// Dictionary<string, object>.
sealed class JsonReader {
    const int DepthMax = 2048;
    const int IntegerDigitsMax = 4300;  // to read one takes a time that grows with the square
    const int SmallBegin = -128, SmallEnd = 1024;
    const ulong SafeEnd = ulong.MaxValue / 10;
    static readonly object True = true, False = false;
    static readonly object[] Small = new object[SmallEnd - SmallBegin];

    byte[] bytes;
    int position, end;
    char[] text = new char[256];

    static JsonReader() {
        for (int each = 0; each < Small.Length; each++) Small[each] = (long)(each + SmallBegin);
    }

    /// The value that is all there is from `begin` to `stop`. Throws JsonError.
    public object Read(byte[] source, int begin, int stop) {
        bytes = source;
        position = begin;
        end = stop;
        object value = Value(0);
        if (Next() >= 0) throw Unexpected();
        return value;
    }

    JsonError Unexpected() {
        if (position >= end) return new JsonError("the text ends too early");
        byte found = bytes[position];
        return new JsonError("unexpected " + (found > 32 && found < 127 ? "'" + (char)found + "'" : "byte " + found));
    }

    /// The next byte that is not white space, which is not taken; -1 at the end.
    int Next() {
        for (; position < end; position++) {
            byte next = bytes[position];
            if (next != ' ' && next != '\t' && next != '\n' && next != '\r') return next;
        }
        return -1;
    }

    /// Whether the next byte is this one, which is taken then.
    bool Take(char wanted) {
        if (Next() != wanted) return false;
        position++;
        return true;
    }

    void Expect(char wanted) {
        if (!Take(wanted)) throw Unexpected();
    }

    object Value(int depth) {
        int next = Next();
        switch (next) {
            case '"': return String();
            case '{': return Object(depth);
            case '[': return Array(depth);
            case 't': return Word("true", True);
            case 'f': return Word("false", False);
            case 'n': return Word("null", null);
            default: return Number();
        }
    }

    object Word(string word, object value) {
        foreach (char letter in word) {
            if (position == end || bytes[position] != letter) throw Unexpected();
            position++;
        }
        return value;
    }

    object Array(int depth) {
        if (depth == DepthMax) throw new JsonError("nesting too deep");
        var parts = new List<object>();
        position++;
        if (Take(']')) return parts;
        do parts.Add(Value(depth + 1)); while (Take(','));
        Expect(']');
        return parts;
    }

    object Object(int depth) {
        if (depth == DepthMax) throw new JsonError("nesting too deep");
        var parts = new Dictionary<string, object>();
        position++;
        if (Take('}')) return parts;
        do {
            if (Next() != '"') throw Unexpected();
            string key = String();
            Expect(':');
            parts[key] = Value(depth + 1);
        } while (Take(','));
        Expect('}');
        return parts;
    }

    string String() {
        int begin = ++position;
        SkipPlain();
        if (bytes[position] == '"') return Encoding.UTF8.GetString(bytes, begin, position++ - begin);
        int filled = 0;
        while (true) {
            int needed = filled + position - begin + 1;
            if (needed > text.Length) System.Array.Resize(ref text, 2 * needed);
            filled += Encoding.UTF8.GetChars(bytes, begin, position - begin, text, filled);
            if (bytes[position++] == '"') return new string(text, 0, filled);
            text[filled++] = Escaped();
            begin = position;
            SkipPlain();
        }
    }

    void SkipPlain() {
        while (position < end && bytes[position] != '"' && bytes[position] != '\\') position++;
        if (position == end) throw Unexpected();
    }

    char Escaped() {
        if (position == end) throw Unexpected();
        switch ((char)bytes[position++]) {
            case '"': return '"';
            case '\\': return '\\';
            case '/': return '/';
            case 'b': return '\b';
            case 'f': return '\f';
            case 'n': return '\n';
            case 'r': return '\r';
            case 't': return '\t';
            case 'u': return Code();
            default:
                position--;
                throw Unexpected();
        }
    }

    char Code() {
        int code = 0;
        for (int last = position + 4; position < last; position++) {
            int digit = position < end ? bytes[position] - '0' : -1;
            if (digit > 9) digit = (digit + '0' | 32) - 'a' + 10;
            if (digit < 0 || digit > 15) throw Unexpected();
            code = code << 4 | digit;
        }
        return (char)code;
    }

    object Number() {
        int begin = position;
        bool negative = position < end && bytes[position] == '-';
        if (negative) position++;
        int first = position;
        ulong digits = 0;
        int places = Digits(ref digits), fraction = 0, exponent = 0;
        if (places == 0 || bytes[first] == '0' && places > 1) throw Unexpected();
        bool whole = true;
        if (position < end && bytes[position] == '.') {
            whole = false;
            position++;
            fraction = Digits(ref digits);
            if (fraction == 0) throw Unexpected();
        }
        int last = position;
        if (position < end && (bytes[position] | 32) == 'e') {
            whole = false;
            exponent = Exponent();
        }
        if (whole) return Integer(begin, first, negative, digits);
        double value = places + fraction <= 19
            ? Numbers.ToDouble(digits, exponent - fraction)
            : Numbers.ToDouble(Text(first, last).Replace(".", ""), exponent - fraction);
        return negative ? -value : value;
    }

    /// Take digits onto `digits`, as far as these can hold them, and return how many there were.
    int Digits(ref ulong digits) {
        int begin = position;
        for (; position < end; position++) {
            int digit = bytes[position] - '0';
            if (digit < 0 || digit > 9) break;
            digits = digits * 10 + (ulong)digit;
        }
        return position - begin;
    }

    int Exponent() {
        position++;
        bool negative = position < end && bytes[position] == '-';
        if (negative || position < end && bytes[position] == '+') position++;
        ulong digits = 0;
        int places = Digits(ref digits);
        if (places == 0) throw Unexpected();
        int exponent = places > 9 || digits > 100000000 ? 100000000 : (int)digits;
        return negative ? -exponent : exponent;
    }

    object Integer(int begin, int first, bool negative, ulong digits) {
        int places = position - first;
        if (places <= 18) {
            long value = negative ? -(long)digits : (long)digits;
            return value >= SmallBegin && value < SmallEnd ? Small[value - SmallBegin] : value;
        }
        if (places > IntegerDigitsMax) throw new JsonError("an integer of " + places + " digits");
        return Large(Text(begin, position));
    }

    static object Large(string text) {
        long value;
        return long.TryParse(text, out value) ? value : (object)BigInteger.Parse(text);
    }

    string Text(int begin, int stop) {
        return Encoding.ASCII.GetString(bytes, begin, stop - begin);
    }
}
}
