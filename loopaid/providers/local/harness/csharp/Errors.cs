// What went wrong, as the program's author should read it.

using System;
using System.Collections.Generic;

namespace Loopaid {

static class Errors {
    public const int TraceCharsMax = 16384;
    static readonly string[] Foreign = { "  at Loopaid.", "  at (wrapper ", "  at System.Dynamic.UpdateDelegates." };
    const int MessageCharsMax = 4096, NameCharsMax = 200;

    /// Append {type, message, traceback} of an exception of the program.
    public static void Describe(JsonText text, Exception error) {
        string trace;
        try {
            trace = error is NoMain ? ((NoMain)error).Lines : Trimmed(error.ToString());
        } catch (Exception) {  // it may be the program's own method
            trace = "";
        }
        Append(text, error.GetType().Name, MessageOf(error), trace);
    }

    public static string MessageOf(Exception error) {
        try {
            return error.Message ?? "";
        } catch (Exception) {
            return "<no message: its Message failed>";
        }
    }

    public static void Append(JsonText text, string type, string message, string trace) {
        text.Ascii("{\"type\":");
        text.String(Cut(type, NameCharsMax));
        text.Ascii(",\"message\":");
        text.String(Cut(message, MessageCharsMax));
        if (trace != "") {
            text.Ascii(",\"traceback\":");
            text.String(Cut(trace));
        }
        text.Byte('}');
    }

    static string Cut(string words, int length) {
        return words.Length <= length ? words : words.Substring(0, length);
    }

    static string Cut(string trace) {
        const int half = TraceCharsMax / 2;
        if (trace.Length <= TraceCharsMax) return trace;
        return trace.Substring(0, half) + "\n  ...\n" + trace.Substring(trace.Length - half);
    }

    /// Without the frames of the harness, and of the others without what only mono understands; "" if none is left.
    static string Trimmed(string trace) {
        var kept = new List<string>();
        bool any = false;
        foreach (string line in trace.Split('\n')) {
            if (IsForeign(line)) continue;
            int code = line.IndexOf(" [0x", StringComparison.Ordinal);
            any |= code >= 0;
            kept.Add(code < 0 ? line : line.Substring(0, code) + Place(line.Substring(code)));
        }
        return any ? string.Join("\n", kept) + "\n" : "";
    }

    static bool IsForeign(string line) {
        return Array.Exists(Foreign, each => line.StartsWith(each, StringComparison.Ordinal));
    }

    /// " [0x00013] in /where/it/was/program.cs:4 " is in program.cs:4, and " [0x0002d] in <d22af0>:0 " nowhere.
    static string Place(string position) {
        int slash = position.LastIndexOf('/');
        return slash < 0 ? "" : " in " + position.Substring(slash + 1).TrimEnd();
    }
}
}
