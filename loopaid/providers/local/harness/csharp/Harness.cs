// What runs inside a C# session: takes one compiled program and executes it on windows of items.
//
// The class library of mono's packages and nothing else. The protocol stands at the top of python.py, the format of
// rows in loopaid/wire/rows.py.

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.Text;
using System.Threading;

namespace Loopaid {

static class Harness {
    const byte Ready = 1, Loaded = 2, LoadFailed = 3, End = 4;
    const byte Load = 1, Run = 2, StandBack = 5;
    const string Settings = "LOOPAID_HARNESS";
    const int FrameBytes = 5, RowsBytesPerWindow = 4 << 20;
    static readonly long StopCheckTicks = Stopwatch.Frequency / 500;  // who wants the session back waits as long

    static readonly JsonReader reader = new JsonReader();
    static readonly JsonText said = new JsonText();
    static Dictionary<string, object> settings;
    static byte[] frame = new byte[1 << 17];
    static int frameLength;
    static int down, up, rows;
    static bool sweeps;
    static Item item;

    static void Main() {
        CultureInfo.DefaultThreadCurrentCulture = CultureInfo.InvariantCulture;
        byte[] text = Encoding.UTF8.GetBytes(Environment.GetEnvironmentVariable(Settings));
        Environment.SetEnvironmentVariable(Settings, null);
        settings = Map(reader.Read(text, 0, text.Length));
        var fds = (List<object>)settings["fds"];
        down = Lifted(fds[0]);
        up = Lifted(fds[1]);
        rows = Lifted(fds[2]);
        sweeps = (bool)settings["sweep"] && Native.LivesInAPidNamespace();
        item = new Item(reader, settings);
        said.Ascii("{\"version\":");
        said.String((string)settings["version"]);
        said.Byte('}');
        Send(Ready);
        while (ReadFrame()) {
            if (frame[0] == Run) RunWindow();
            else if (frame[0] == Load) LoadProgram(Map(reader.Read(frame, FrameBytes, frameLength)));
            else if (frame[0] == StandBack) Become(settings["parent"]);
        }
    }

    static int Lifted(object fd) {
        int high = Native.Lifted((int)(long)fd);
        Native.Close((int)(long)fd);
        return high;
    }

    static Dictionary<string, object> Map(object value) {
        return (Dictionary<string, object>)value;
    }

    // --- frames

    /// Wait for a frame, and have it in `frame`; false when there will be none.
    static bool ReadFrame() {
        if (!Native.Read(down, frame, 0, FrameBytes)) return false;
        frameLength = FrameBytes + Packed.Number(frame, 1);
        if (frameLength > frame.Length) Array.Resize(ref frame, frameLength);
        return Native.Read(down, frame, FrameBytes, frameLength);
    }

    /// Look without waiting. Between RUN and END the daemon sends nothing but STOP.
    static bool StopRequested() {
        if (!Native.IsWaiting(down)) return false;
        ReadFrame();
        return true;
    }

    /// Send what stands in `said`.
    static void Send(byte kind) {
        var bytes = new byte[FrameBytes + said.Length];
        bytes[0] = kind;
        Packed.Number(bytes, 1, said.Length);
        Buffer.BlockCopy(said.Bytes, 0, bytes, FrameBytes, said.Length);
        said.Clear();
        Native.Write(up, bytes, 0, bytes.Length);
    }

    // --- the program

    static void LoadProgram(Dictionary<string, object> program) {
        byte kind = Loaded;
        try {
            item.Use((string)program["digest"], new Built((int)(long)settings["program"]));
            said.Byte('{');
        } catch (Exception error) {  // the program's own code runs when the class of its Main is initialized
            kind = LoadFailed;
            Exception cause = error is TypeInitializationException ? error.InnerException ?? error : error;
            item.Refuse(cause);
            Errors.Describe(said, cause);
            said.Length--;  // its bracket
            item.AppendPrints(said, Errors.TraceCharsMax);
        }
        item.ForgetPrints();
        said.Byte('}');
        Send(kind);
    }

    /// Items get processes of their own: let a parent of such, which is a harness in Python, have the session.
    static void Become(object parent) {
        foreach (int fd in new[] { down, up, rows }) Native.Inherit(fd);
        settings["fds"] = new List<object> { down, up, rows };
        new Outputs(said, long.MaxValue).Write(settings);
        Environment.SetEnvironmentVariable(Settings, Encoding.UTF8.GetString(said.Bytes, 0, said.Length));
        Native.Become((List<object>)parent, Environment.GetEnvironmentVariables());
    }

    // --- windows

    static void RunWindow() {
        int inputs = FrameBytes + 4 + Packed.Number(frame, FrameBytes);
        LoopaidItem.Window = Map(reader.Read(frame, FrameBytes + 4, inputs));
        object seconds;  // of an item with a process of its own; should nobody else watch it, the kernel does
        if (LoopaidItem.Window.TryGetValue("cpu_s", out seconds)) Native.BoundCpu((long)seconds + 1);
        bool tainted = false;
        int done = RunItems(LoopaidItem.Window, inputs, ref tainted);
        if (sweeps && Native.KillAllOthers()) tainted = true;
        said.Ascii("{\"done\":");
        said.Integer(done);
        said.Ascii(tainted ? ",\"tainted\":true" : ",\"tainted\":false");
        said.Ascii(",\"rss_bytes\":");
        said.Integer(Native.PeakBytes());
        said.Byte('}');
        Send(End);
    }

    /// Execute items until the window is over; return how many.
    static int RunItems(Dictionary<string, object> window, int position, ref bool tainted) {
        var count = (long)window["count"];
        var seq = (long)window["seq"];
        var stopOnError = (bool)window["stop_on_error"];
        long patience = (bool)window["eager_stop"] ? -1 : StopCheckTicks, looked = Stopwatch.GetTimestamp();
        int done = 0, written = 0, end = frameLength;
        while (done < count) {
            LoopaidItem.Position = done;
            int stop = Packed.Find((byte)'\n', frame, position, end);
            Status status = item.Execute(frame, position, stop, seq + done);
            position = stop + 1;
            done++;
            Native.Write(rows, item.Row.Bytes, 0, item.Row.Length);
            written += item.Row.Length;
            tainted = status == Status.OutputLimit || status == Status.MemoryLimit;  // which may have kept it all
            if (tainted || written > RowsBytesPerWindow || stopOnError && status != Status.Ok) break;
            if (item.Ended - looked <= patience) continue;
            looked = item.Ended;
            if (StopRequested()) break;
        }
        return done;
    }
}
}
