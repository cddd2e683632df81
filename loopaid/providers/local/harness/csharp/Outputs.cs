// What a program returns, as JSON: null, booleans, numbers, strings, times, what can be enumerated, what has keys, and
// the public properties and fields of the program's own types.

using System;
using System.Collections;
using System.Collections.Generic;
using System.Globalization;
using System.Numerics;
using System.Reflection;

namespace Loopaid {

/// A value has no word in JSON, or is too large; the message begins with its place.
sealed class NotJson : Exception {
    public NotJson(string message) : base(message) {}
}

sealed class Outputs {
    const int DepthMax = 512;
    const string Time = "yyyy-MM-ddTHH:mm:ss.FFFFFFFK";

    public Assembly Program;
    readonly JsonText text;
    readonly long bytesMax;
    readonly Dictionary<Type, Action<object>> writers = new Dictionary<Type, Action<object>>();
    readonly object[] parents = new object[DepthMax];
    readonly string[] keys = new string[DepthMax];  // where in the parent we are; null in a list
    readonly int[] indexes = new int[DepthMax];
    int depth, begin;

    public Outputs(JsonText text, long bytesMax) {
        this.text = text;
        this.bytesMax = bytesMax;
        CultureInfo invariant = CultureInfo.InvariantCulture;
        writers.Add(typeof(bool), value => text.Ascii((bool)value ? "true" : "false"));
        writers.Add(typeof(double), value => Float((double)value, false));
        writers.Add(typeof(float), value => Float((float)value, true));
        writers.Add(typeof(int), value => text.Integer((int)value));
        writers.Add(typeof(uint), value => text.Integer((uint)value));
        writers.Add(typeof(short), value => text.Integer((short)value));
        writers.Add(typeof(ushort), value => text.Integer((ushort)value));
        writers.Add(typeof(byte), value => text.Integer((byte)value));
        writers.Add(typeof(sbyte), value => text.Integer((sbyte)value));
        writers.Add(typeof(ulong), value => text.Ascii(((ulong)value).ToString(invariant)));
        writers.Add(typeof(decimal), value => text.Ascii(((decimal)value).ToString(invariant)));
        writers.Add(typeof(char), value => String(((char)value).ToString()));
        writers.Add(typeof(DateTime), value => String(((DateTime)value).ToString(Time, invariant)));
        writers.Add(typeof(DateTimeOffset), value => String(((DateTimeOffset)value).ToString(Time, invariant)));
        writers.Add(typeof(TimeSpan), value => String(value.ToString()));
        writers.Add(typeof(Guid), value => String(value.ToString()));
    }

    /// Write a value behind what is there. Throws NotJson, and what the value's own methods throw.
    public void Write(object value) {
        begin = text.Length;
        depth = 0;
        Value(value);
        CheckSize(0);
    }

    void CheckSize(int more) {
        if (text.Length - begin + more > bytesMax)
            throw new NotJson("more than output_bytes_max = " + bytesMax + " bytes");
    }

    void Value(object value) {
        if (value == null) {
            text.Ascii("null");
        } else if (value is string) {
            String((string)value);
        } else if (value is long) {
            text.Integer((long)value);
        } else if (value is List<object>) {
            List((List<object>)value);
        } else if (value is Dictionary<string, object>) {
            Map((Dictionary<string, object>)value);
        } else {
            Type type = value.GetType();
            Action<object> write;
            if (!writers.TryGetValue(type, out write)) writers[type] = write = WriterOf(type);
            write(value);
        }
    }

    void String(string value) {
        CheckSize(value.Length);
        if (!text.String(value)) throw Refuse("half a surrogate pair");
    }

    void Float(double value, bool single) {
        if (double.IsNaN(value) || double.IsInfinity(value))
            throw Refuse(double.IsNaN(value) ? "NaN" : value > 0 ? "Infinity" : "-Infinity");
        text.Float(value, single);
    }

    Action<object> WriterOf(Type type) {
        if (type.IsEnum) return value => text.Ascii(((Enum)value).ToString("D"));
        if (type == typeof(BigInteger)) return value => text.Ascii(value.ToString());
        if (typeof(IDictionary<string, object>).IsAssignableFrom(type))
            return value => Map((IDictionary<string, object>)value);
        if (typeof(IDictionary).IsAssignableFrom(type)) return value => Entries((IDictionary)value);
        if (typeof(IEnumerable).IsAssignableFrom(type)) return value => List((IEnumerable)value);
        string name = Name(type);
        if (type.Assembly == Program && !typeof(Delegate).IsAssignableFrom(type) ||
            name == "Tuple" || name == "ValueTuple" || name == "KeyValuePair") return WriterOfMembers(type);
        return value => { throw Refuse(name); };
    }

    Action<object> WriterOfMembers(Type type) {
        var names = new List<string>();
        var getters = new List<Func<object, object>>();
        foreach (PropertyInfo each in type.GetProperties(BindingFlags.Public | BindingFlags.Instance)) {
            if (each.GetGetMethod() == null || each.GetIndexParameters().Length > 0) continue;
            names.Add(each.Name);
            getters.Add(value => each.GetValue(value, null));
        }
        foreach (FieldInfo each in type.GetFields(BindingFlags.Public | BindingFlags.Instance)) {
            names.Add(each.Name);
            getters.Add(each.GetValue);
        }
        return value => {
            Enter(value, '{');
            for (int each = 0; each < names.Count; each++) {
                Key(names[each], each == 0);
                Value(getters[each](value));
            }
            Leave('}');
        };
    }

    // --- containers

    void Enter(object value, char bracket) {
        if (depth == DepthMax) throw TooDeep();
        parents[depth] = value;
        keys[depth] = null;
        depth++;
        text.Byte(bracket);
    }

    void Leave(char bracket) {
        depth--;
        text.Byte(bracket);
    }

    void Index(int index) {
        CheckSize(0);
        indexes[depth - 1] = index;
        if (index > 0) text.Byte(',');
    }

    void Key(string key, bool first) {
        if (!first) text.Byte(',');
        keys[depth - 1] = key;
        String(key);
        text.Byte(':');
    }

    void List(List<object> parts) {
        Enter(parts, '[');
        for (int each = 0; each < parts.Count; each++) {
            Index(each);
            Value(parts[each]);
        }
        Leave(']');
    }

    void List(IEnumerable parts) {
        Enter(parts, '[');
        int index = 0;
        foreach (object each in parts) {
            Index(index++);
            Value(each);
        }
        Leave(']');
    }

    void Map(IEnumerable<KeyValuePair<string, object>> parts) {
        Enter(parts, '{');
        bool first = true;
        foreach (KeyValuePair<string, object> each in parts) {
            Key(each.Key, first);
            Value(each.Value);
            first = false;
        }
        Leave('}');
    }

    void Entries(IDictionary parts) {
        Enter(parts, '{');
        bool first = true;
        foreach (DictionaryEntry each in parts) {
            Key(KeyText(each.Key), first);
            Value(each.Value);
            first = false;
        }
        Leave('}');
    }

    string KeyText(object key) {
        if (key is string) return (string)key;
        TypeCode code = Convert.GetTypeCode(key);
        if (code < TypeCode.Char || code > TypeCode.UInt64) throw Refuse("a key of type " + Name(key.GetType()));
        return Convert.ToString(key, CultureInfo.InvariantCulture);
    }

    // --- what cannot be said

    static string Name(Type type) {
        int end = type.Name.IndexOf('`');
        return end < 0 ? type.Name : type.Name.Substring(0, end);
    }

    NotJson Refuse(string kind) {
        return new NotJson(Path(depth) + ": " + kind);
    }

    string Path(int end) {
        string path = "output";
        for (int each = 0; each < end; each++)
            path += keys[each] == null ? "[" + indexes[each] + "]" : "." + keys[each];
        return path;
    }

    NotJson TooDeep() {
        for (int each = 1; each < depth; each++)
            for (int before = 0; before < each; before++)
                if (ReferenceEquals(parents[before], parents[each])) return new NotJson(Path(each) + ": a cycle");
        return new NotJson("output: nesting too deep");
    }
}
}
