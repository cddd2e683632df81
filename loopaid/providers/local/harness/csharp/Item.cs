// One item: an input becomes the row of its outcome.

using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Reflection;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;

namespace Loopaid {

enum Status { Ok = 0, ProgramError = 1, MemoryLimit = 4, OutputLimit = 5, InvalidOutput = 6, InvalidInput = 7 }

/// Numbers as MessagePack and our frames have them.
static class Packed {
    public static int Number(byte[] bytes, int at) {
        return bytes[at] << 24 | bytes[at + 1] << 16 | bytes[at + 2] << 8 | bytes[at + 3];
    }

    /// Where this byte comes first, `end` when it does not.
    public static int Find(byte wanted, byte[] bytes, int begin, int end) {
        while (begin < end && bytes[begin] != wanted) begin++;
        return begin;
    }

    public static void Number(byte[] bytes, int at, long value) {
        bytes[at] = (byte)(value >> 24);
        bytes[at + 1] = (byte)(value >> 16);
        bytes[at + 2] = (byte)(value >> 8);
        bytes[at + 3] = (byte)value;
    }
}

sealed class Item {
    const int HeadBytes = 22, ReserveBytes = 16 << 20;
    const byte Nil = 0xC0, Bin = 0xC6, U32 = 0xCE, ArrayOf6 = 0x96;
    static readonly long TicksPerMicrosecond = Stopwatch.Frequency / 1000000;

    public readonly JsonText Row = new JsonText();
    public long Ended;
    long began;
    readonly JsonReader reader;
    readonly JsonText error = new JsonText();
    readonly Outputs outputs;
    readonly Capture stdout, stderr;
    readonly long printedBytesMax;
    Func<object, object> call;
    IntPtr reserve = Marshal.AllocHGlobal(ReserveBytes);

    public Item(JsonReader reader, Dictionary<string, object> settings) {
        this.reader = reader;
        outputs = new Outputs(Row, (long)settings["output_bytes_max"]);
        stdout = new Capture("stdout", 1, settings);
        stderr = new Capture("stderr", 2, settings);
        printedBytesMax = (long)((Dictionary<string, object>)settings["limits"])["FSIZE"];
        Console.SetOut(Capture.Writer(1));
        Console.SetError(Capture.Writer(2));
        Native.Ignore(Native.SIGXFSZ);  // then the write beyond it fails, instead of ending us
        WarmUp();
    }

    /// The first item is not to wait until all this has become machine code.
    void WarmUp() {
        byte[] input = Encoding.ASCII.GetBytes("{\"a\":[\"b\\n\",-1,2.5,true,null]}");
        call = value => value;
        Execute(input, 0, input.Length, 0);
    }

    /// Execute this program from now on. Throws NoMain, and what the program throws while its class is initialized.
    public void Use(string digest, Built program) {
        LoopaidItem.Digest = digest;
        outputs.Program = program.Assembly;
        call = Entry.Of(program);
    }

    /// The program did not load: should it be called all the same, that is what comes of it.
    public void Refuse(Exception failure) {
        ExceptionDispatchInfo told = ExceptionDispatchInfo.Capture(failure);
        call = input => {
            told.Throw();
            return null;
        };
    }

    /// Run the program on the input in source from `begin` to `stop`, and have what came of it in `Row`.
    public Status Execute(byte[] source, int begin, int stop, long seq) {
        Row.Clear();
        Row.Room(HeadBytes);
        Row.Length = HeadBytes;
        error.Clear();
        began = Ended = Stopwatch.GetTimestamp();
        Status status = Outcome(source, begin, stop);
        Finish(ref status, seq);
        return status;
    }

    Status Outcome(byte[] source, int begin, int stop) {
        try {
            object value = reader.Read(source, begin, stop);
            Exception failure = Call(ref value);
            return failure == null ? Write(value) : Fail(failure);
        } catch (JsonError failure) {
            return Fail(Status.InvalidInput, failure.Message);
        } catch (OutOfMemoryException failure) {
            Breathe();
            return Fail(failure);
        }
    }

    /// Make room for the words about it: a collection that finds no memory ends the process, and says nothing.
    void Breathe() {
        Marshal.FreeHGlobal(reserve);
        reserve = IntPtr.Zero;
    }

    /// Replace the input by the output; return what the program throws instead.
    Exception Call(ref object value) {
        began = Stopwatch.GetTimestamp();
        try {
            value = call(value);
            Console.Out.Flush();
            return null;
        } catch (Exception failure) {  // whatever it is
            if (failure is ThreadAbortException) Thread.ResetAbort();
            if (failure is OutOfMemoryException) Breathe();
            return failure;
        } finally {
            Ended = Stopwatch.GetTimestamp();
        }
    }

    Status Write(object value) {
        try {
            outputs.Write(value);
            return Status.Ok;
        } catch (NotJson failure) {
            return Fail(Status.InvalidOutput, failure.Message);
        } catch (Exception failure) {  // the value's own methods run here
            Exception cause = failure is TargetInvocationException ? failure.InnerException : failure;
            if (cause is OutOfMemoryException) throw cause;
            return Fail(Status.InvalidOutput, cause.GetType().Name + ": " + Errors.MessageOf(cause));
        }
    }

    Status Fail(Exception failure) {
        Errors.Describe(error, failure);
        return failure is OutOfMemoryException ? Status.MemoryLimit
            : failure is NoResult ? Status.InvalidOutput
            : Status.ProgramError;
    }

    Status Fail(Status status, string message) {
        Errors.Append(error, status.ToString(), message, "");
        return status;
    }

    /// Add to the output, if that is what came of the item, what else is to be said, and the head.
    void Finish(ref Status status, long seq) {
        long printed = Math.Max(stdout.Size, stderr.Size);
        if (printed >= printedBytesMax) {
            error.Clear();
            status = Fail(Status.OutputLimit, "the program printed more than " + printedBytesMax + " bytes");
        }
        if (status != Status.Ok) Row.Length = HeadBytes;
        int outputBytes = Row.Length - HeadBytes;
        if (error.Length > 0 || printed > 0) AppendExtra();
        else Row.Byte((char)Nil);
        byte[] bytes = Row.Bytes;
        bytes[0] = ArrayOf6;
        bytes[1] = bytes[6] = bytes[12] = U32;
        Packed.Number(bytes, 2, Row.Length);
        Packed.Number(bytes, 7, seq);
        bytes[11] = (byte)status;
        Packed.Number(bytes, 13, Math.Min(uint.MaxValue, (Ended - began) / TicksPerMicrosecond));
        bytes[17] = Bin;
        Packed.Number(bytes, 18, outputBytes);
    }

    void AppendExtra() {
        Row.Byte((char)Bin);
        Row.Room(4);
        Row.Length += 4;
        int begin = Row.Length;
        Row.Ascii("{\"error\":");
        if (error.Length > 0) Row.Append(error);
        else Row.Ascii("null");
        AppendPrints(Row, long.MaxValue);
        Row.Byte('}');
        ForgetPrints();
        Packed.Number(Row.Bytes, begin - 4, Row.Length - begin);
    }

    /// Append what the program printed, of each stream at most so many bytes, as further members of an object.
    public void AppendPrints(JsonText text, long most) {
        stdout.Append(text, most);
        stderr.Append(text, most);
    }

    public void ForgetPrints() {
        stdout.Forget();
        stderr.Forget();
    }
}
}
