// What the program prints: into a memory file that the daemon can read too, and from there into the row of its item.

using System;
using System.Collections.Generic;
using System.IO;
using System.Text;

namespace Loopaid {

/// Writes as they come to a file descriptor, and fails when that fails: mono's own Console goes on in silence.
sealed class PrintStream : Stream {
    readonly int fd;

    public PrintStream(int fd) {
        this.fd = fd;
    }

    public override void Write(byte[] bytes, int begin, int count) {
        Native.Write(fd, bytes, begin, begin + count);
    }

    public override void Flush() {}
    public override bool CanRead { get { return false; } }
    public override bool CanSeek { get { return false; } }
    public override bool CanWrite { get { return true; } }
    public override long Length { get { throw new NotSupportedException(); } }
    public override long Position {
        get { throw new NotSupportedException(); }
        set { throw new NotSupportedException(); }
    }

    public override int Read(byte[] bytes, int begin, int count) { throw new NotSupportedException(); }
    public override long Seek(long offset, SeekOrigin origin) { throw new NotSupportedException(); }
    public override void SetLength(long length) { throw new NotSupportedException(); }
}

/// One of the two memory files behind stdout and stderr.
sealed class Capture {
    readonly string name;
    readonly int fd;
    readonly long limit;

    public Capture(string name, int fd, Dictionary<string, object> settings) {
        this.name = name;
        this.fd = Native.Lifted(fd);
        limit = (long)settings[name + "_bytes_max"];
    }

    /// For Console: what a killed item printed is to be in the file already.
    public static TextWriter Writer(int fd) {
        return new StreamWriter(new PrintStream(fd), new UTF8Encoding(false), 1024) { AutoFlush = true };
    }

    public long Size {
        get { return Native.Size(fd); }
    }

    /// Append what was written since the last time, at most `most` bytes of it, as members of an object.
    public void Append(JsonText text, long most) {
        long size = Size;
        if (size == 0) return;
        var bytes = new byte[Math.Min(size, Math.Min(limit, most))];
        string words = Encoding.UTF8.GetString(bytes, 0, Native.ReadFromBegin(fd, bytes));
        text.Ascii(",\"" + name + "\":");
        text.String(words);
        if (size > limit) text.Ascii(",\"" + name + "_truncated\":true");
    }

    public void Forget() {
        if (Size > 0) Native.Empty(fd);
    }
}
}
