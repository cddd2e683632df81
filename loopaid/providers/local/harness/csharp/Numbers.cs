// Doubles as decimal texts and back, exactly: what mono's own do in most cases only.

using System;
using System.Numerics;

namespace Loopaid {

static class Numbers {
    const long MantissaEnd = 1L << 53;  // integers below are doubles
    const int ExactPower = 22;  // the largest power of ten that is a double
    const int DigitsMax = 800;  // more never decide how a double is rounded, as long as it is known that there are some
    static readonly double[] Powers = new double[ExactPower + 1];

    static Numbers() {
        double power = 1;
        for (int each = 0; each <= ExactPower; each++, power *= 10) Powers[each] = power;
    }

    /// The double next to digits * 10^exponent.
    public static double ToDouble(ulong digits, int exponent) {
        if (digits == 0) return 0;
        if (digits <= MantissaEnd && exponent >= -ExactPower && exponent <= ExactPower)
            return exponent < 0 ? digits / Powers[-exponent] : digits * Powers[exponent];
        return Rounded(digits, exponent);
    }

    /// The double next to `digits`, which are ASCII and any number, * 10^exponent.
    public static double ToDouble(string digits, int exponent) {
        if (digits.Length > DigitsMax) {
            exponent += digits.Length - DigitsMax - 1;
            digits = digits.Substring(0, DigitsMax) + "1";
        }
        return Rounded(BigInteger.Parse(digits), exponent);
    }

    static double Rounded(BigInteger digits, int exponent) {
        if (digits.IsZero || exponent < -1200) return 0;
        if (exponent > 310) return double.PositiveInfinity;
        BigInteger over = digits, under = BigInteger.One;
        if (exponent < 0) under = BigInteger.Pow(10, -exponent);
        else over *= BigInteger.Pow(10, exponent);
        int shift = 62 + BitLength(under) - BitLength(over);  // for a quotient of 62 or 63 bits
        if (shift > 0) over <<= shift;
        else under <<= -shift;
        BigInteger rest;
        ulong quotient = (ulong)BigInteger.DivRem(over, under, out rest);
        int drop = Math.Max(quotient >> 62 == 0 ? 9 : 10, shift - 1074);
        if (drop > 63) return 0;
        ulong kept = quotient >> drop, lost = quotient & (1UL << drop) - 1, half = 1UL << drop - 1;
        if (lost > half || lost == half && (!rest.IsZero || (kept & 1) == 1)) kept++;
        if (kept < 1UL << 52) return BitConverter.Int64BitsToDouble((long)kept);
        long biased = drop - shift + 1075;  // what `kept` has above 52 bits counts into it
        if (biased > 2046) return double.PositiveInfinity;
        return BitConverter.Int64BitsToDouble((biased - 1 << 52) + (long)kept);
    }

    static int BitLength(BigInteger positive) {
        byte[] bytes = positive.ToByteArray();
        int last = bytes.Length - 1, bits = 8 * last;
        for (int rest = bytes[last]; rest != 0; rest >>= 1) bits++;
        return bits;
    }

    /// The fewest digits that are read as this number above 0, next to it among those: digits * 10^exponent.
    public static long Shortest(double value, bool single, out int exponent) {
        if (!single && value < 1e15 && value >= 1e-7) {
            for (exponent = 0; exponent >= -ExactPower; exponent--) {
                double scaled = Math.Round(value * Powers[-exponent]);
                if (scaled >= 1e15) break;
                if (scaled / Powers[-exponent] == value) return WithoutZeros((long)scaled, ref exponent);
            }
        }
        int places = single ? 23 : 52, least = single ? 150 : 1075;
        long bits = single
            ? BitConverter.ToInt32(BitConverter.GetBytes((float)value), 0)
            : BitConverter.DoubleToInt64Bits(value);
        long mantissa = bits & (1L << places) - 1;
        int power = (int)(bits >> places);
        bool lowest = mantissa == 0 && power > 1;  // of its power: those below lie twice as close
        if (power == 0) power = 1;
        else mantissa |= 1L << places;
        return Shortest(mantissa, power - least, lowest, (int)Math.Floor(Math.Log10(value)) - 16, out exponent);
    }

    /// The same for mantissa * 2^power, which has 17 digits in front of 10^scale, or 18.
    static long Shortest(long mantissa, int power, bool lowest, int scale, out int exponent) {
        exponent = scale;
        BigInteger over = 1, under = 1;
        if (exponent < 0) over = BigInteger.Pow(10, -exponent);
        else under = BigInteger.Pow(10, exponent);
        if (power - 2 < 0) under <<= 2 - power;
        else over <<= power - 2;
        BigInteger rest, edge;
        long digits = (long)BigInteger.DivRem(4 * mantissa * over, under, out rest);
        long least = (long)BigInteger.DivRem((4 * mantissa - (lowest ? 1 : 2)) * over, under, out edge);
        bool even = (mantissa & 1) == 0;  // then the middle between it and its neighbour is read as it
        if (!edge.IsZero || !even) least++;
        long most = (long)BigInteger.DivRem((4 * mantissa + 2) * over, under, out edge);
        if (edge.IsZero && !even) most--;
        long unit = 1000000000000000000;
        for (; unit > 1; unit /= 10) {
            long below = digits / unit * unit, above = below + unit;
            if (below < least && above > most) continue;
            long middle = digits - below - unit / 2;
            bool nearer = middle > 0 || middle == 0 && (!rest.IsZero || (below / unit & 1) == 1);
            return WithoutZeros(above <= most && (nearer || below < least) ? above : below, ref exponent);
        }
        int half = (2 * rest).CompareTo(under);
        if (half > 0 || half == 0 && (digits & 1) == 1) digits++;
        return WithoutZeros(digits, ref exponent);
    }

    static long WithoutZeros(long digits, ref int exponent) {
        for (; digits % 10 == 0; digits /= 10) exponent++;
        return digits;
    }
}
}
