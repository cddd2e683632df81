// The system calls for which the class library has no word, or one that cannot work on a pipe.

using System;
using System.Collections;
using System.Collections.Generic;
using System.IO;
using System.Runtime.InteropServices;

namespace Loopaid {

static class Native {
    public const int SIGXFSZ = 25;
    const string Libc = "__Internal";  // which mono itself has loaded, and need not look for in many places
    const int EINTR = 4, POLLIN = 1, F_SETFD = 2, F_DUPFD_CLOEXEC = 1030, SEEK_SET = 0, SEEK_END = 2, SIGKILL = 9;
    const int RLIMIT_CPU = 0, RUSAGE_BYTES = 144, RUSAGE_MAXRSS = 32;
    const int LowestFd = 48;  // above what careless programs close, below 64, where the table grows, for 10 ms

    struct PollFd {
        public int Fd;
        public short Events, Got;
    }

    [DllImport(Libc, SetLastError = true)]
    static extern IntPtr read(int fd, ref byte bytes, IntPtr count);
    [DllImport(Libc, SetLastError = true)]
    static extern IntPtr write(int fd, ref byte bytes, IntPtr count);
    [DllImport(Libc)]
    static extern IntPtr pread(int fd, byte[] bytes, IntPtr count, long offset);
    [DllImport(Libc)]
    static extern long lseek(int fd, long offset, int from);
    [DllImport(Libc)]
    static extern int ftruncate(int fd, long size);
    [DllImport(Libc)]
    static extern int poll(ref PollFd fds, UIntPtr count, int timeout);
    [DllImport(Libc)]
    static extern int fcntl(int fd, int command, int argument);
    [DllImport(Libc)]
    static extern int close(int fd);
    [DllImport(Libc)]
    static extern int kill(int pid, int signal);
    [DllImport(Libc)]
    static extern int getsid(int pid);
    [DllImport(Libc)]
    static extern int execve(string path, string[] arguments, string[] environment);
    [DllImport(Libc)]
    static extern int getrusage(int who, byte[] usage);
    [DllImport(Libc)]
    static extern int setrlimit(int kind, long[] limits);
    [DllImport(Libc)]
    static extern IntPtr signal(int signal, IntPtr handler);

    /// A copy that children do not inherit.
    public static int Lifted(int fd) {
        return fcntl(fd, F_DUPFD_CLOEXEC, LowestFd);
    }

    public static void Inherit(int fd) {
        fcntl(fd, F_SETFD, 0);
    }

    public static void Close(int fd) {
        close(fd);
    }

    /// Become another program. Returns only if that fails.
    public static void Become(IEnumerable<object> command, IDictionary environment) {
        var arguments = new List<string>();
        foreach (string each in command) arguments.Add(each);
        var variables = new List<string>();
        foreach (DictionaryEntry each in environment) variables.Add(each.Key + "=" + each.Value);
        execve(arguments[0], Ended(arguments), Ended(variables));
    }

    static string[] Ended(List<string> words) {
        words.Add(null);
        return words.ToArray();
    }

    /// Fill bytes from `at` to `end`; false at the end of the file.
    public static bool Read(int fd, byte[] bytes, int at, int end) {
        while (at < end) {
            int count = (int)read(fd, ref bytes[at], (IntPtr)(end - at));
            if (count == 0 || count < 0 && Marshal.GetLastWin32Error() != EINTR) return false;
            at += Math.Max(count, 0);
        }
        return true;
    }

    public static void Write(int fd, byte[] bytes, int at, int end) {
        while (at < end) {
            int count = (int)write(fd, ref bytes[at], (IntPtr)(end - at));
            if (count < 0 && Marshal.GetLastWin32Error() != EINTR)
                throw new IOException("write failed with errno " + Marshal.GetLastWin32Error());
            at += Math.Max(count, 0);
        }
    }

    public static bool IsWaiting(int fd) {
        var look = new PollFd { Fd = fd, Events = POLLIN };
        return poll(ref look, (UIntPtr)1, 0) > 0;
    }

    public static long Size(int fd) {
        return lseek(fd, 0, SEEK_END);
    }

    public static int ReadFromBegin(int fd, byte[] bytes) {
        return (int)pread(fd, bytes, (IntPtr)bytes.Length, 0);
    }

    public static void Empty(int fd) {
        ftruncate(fd, 0);
        lseek(fd, 0, SEEK_SET);
    }

    public static long PeakBytes() {
        var usage = new byte[RUSAGE_BYTES];
        getrusage(0, usage);
        return BitConverter.ToInt64(usage, RUSAGE_MAXRSS) * 1024;
    }

    /// Have the kernel kill us when we have used so many seconds of CPU. SIGXCPU, which would come first, is mono's.
    public static void BoundCpu(long seconds) {
        setrlimit(RLIMIT_CPU, new[] { seconds, seconds });
    }

    public static void Ignore(int number) {
        signal(number, (IntPtr)1);
    }

    /// Kill what the program left running; true when there was something.
    public static bool KillAllOthers() {
        return kill(-1, SIGKILL) == 0;
    }

    /// To kill all there is is for a sandbox alone, whose first processes lead the session: that is bubblewrap's.
    public static bool LivesInAPidNamespace() {
        try {
            return getsid(0) < 3 && File.ReadAllText("/proc/1/comm").Trim() == "bwrap";
        } catch (IOException) {
            return false;
        } catch (UnauthorizedAccessException) {
            return false;
        }
    }
}
}
