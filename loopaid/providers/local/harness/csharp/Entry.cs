// The program's Main as a function from input to output.

using System;
using System.Collections.Generic;
using System.Numerics;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Text;
using System.Threading.Tasks;

namespace Loopaid {

/// What was built: the sizes of an assembly and its symbols in digits, a newline, these two, and their source.
sealed class Built {
    public readonly Assembly Assembly;
    public readonly string Source;

    public Built(int fd) {
        var bytes = new byte[Native.Size(fd)];
        Native.ReadFromBegin(fd, bytes);
        Native.Close(fd);
        int begin = Packed.Find((byte)'\n', bytes, 0, bytes.Length) + 1;
        string sizes = Encoding.ASCII.GetString(bytes, 0, begin);
        int space = sizes.IndexOf(' ');
        byte[] assembly = Part(bytes, ref begin, int.Parse(sizes.Substring(0, space)));
        byte[] symbols = Part(bytes, ref begin, int.Parse(sizes.Substring(space)));
        Source = Encoding.UTF8.GetString(bytes, begin, bytes.Length - begin);
        Assembly = Assembly.Load(assembly, symbols);
    }

    static byte[] Part(byte[] bytes, ref int begin, int size) {
        var part = new byte[size];
        Buffer.BlockCopy(bytes, begin, part, 0, size);
        begin += size;
        return part;
    }
}

/// The program has no Main that can be called with an input. `Lines` are those that look as if they defined one.
sealed class NoMain : Exception {
    public readonly string Lines = "";

    public NoMain(string message, string source) : base(message) {
        string[] lines = source.Split('\n');
        for (int each = 0; each < lines.Length; each++) {
            if (!lines[each].Replace(" ", "").Contains("Main(")) continue;
            Lines += "program.cs:" + (each + 1) + ": " + lines[each].Trim() + "\n";
        }
    }
}

/// A script ended without assigning `result`.
sealed class NoResult : Exception {
    public NoResult() : base("the script ended without assigning `result`") {}
}

/// For the function that a script becomes: `result` is Unassigned first, and Result is what it answers.
public static class Script {
    public static readonly object Unassigned = new object();

    public static object Result(object result) {
        if (result == Unassigned) throw new NoResult();
        return result;
    }
}

static class Entry {
    const string Wanted = "`public static object Main(object input)`";
    const BindingFlags Declared = BindingFlags.Public | BindingFlags.NonPublic | BindingFlags.Static |
        BindingFlags.Instance | BindingFlags.DeclaredOnly;
    static readonly Type[] Inputs = {
        typeof(string), typeof(bool), typeof(long), typeof(double), typeof(BigInteger), typeof(List<object>),
        typeof(Dictionary<string, object>),
    };

    /// Find Main, and have the fields of its class initialized. Throws NoMain, and what the program throws there.
    public static Func<object, object> Of(Built program) {
        MethodInfo main = Find(program);
        RuntimeHelpers.RunClassConstructor(main.DeclaringType.TypeHandle);
        RuntimeHelpers.PrepareMethod(main.MethodHandle);
        if (main.ReturnType == typeof(object) && main.GetParameters()[0].ParameterType == typeof(object))
            return (Func<object, object>)Delegate.CreateDelegate(typeof(Func<object, object>), main);
        Type kind = typeof(Typed<,>).MakeGenericType(main.GetParameters()[0].ParameterType, main.ReturnType);
        return ((ITyped)Activator.CreateInstance(kind)).Bound(main);
    }

    static MethodInfo Find(Built program) {
        var found = new List<MethodInfo>();
        foreach (Type type in program.Assembly.GetTypes())
            foreach (MethodInfo each in type.GetMethods(Declared))
                if (each.Name == "Main") found.Add(each);
        List<MethodInfo> callable = found.FindAll(IsCallable);
        if (callable.Count == 1) return callable[0];
        string problem = "the program defines no " + Wanted;
        if (callable.Count > 1) problem = "the program defines more than one Main: " + List(callable);
        else if (found.Count > 0) problem += "; what it defines cannot be called: " + List(found);
        throw new NoMain(problem, program.Source);
    }

    static string List(List<MethodInfo> methods) {
        return string.Join(", ", methods.ConvertAll(each => "`" + each + "` of " + each.DeclaringType));
    }

    static bool IsCallable(MethodInfo main) {
        ParameterInfo[] parameters = main.GetParameters();
        Type output = main.ReturnType;
        return main.IsStatic && !main.ContainsGenericParameters && parameters.Length == 1 && output != typeof(void) &&
            output != typeof(Task) && !output.IsPointer && !output.IsByRef && Takes(parameters[0].ParameterType);
    }

    static bool Takes(Type type) {
        Type inner = Nullable.GetUnderlyingType(type) ?? type;
        return Array.Exists(Inputs, inner.IsAssignableFrom) || !inner.IsEnum && Type.GetTypeCode(inner) >= TypeCode.SByte &&
            Type.GetTypeCode(inner) <= TypeCode.Decimal;
    }
}

interface ITyped {
    Func<object, object> Bound(MethodInfo main);
}

/// A Main that says what it takes or gives.
sealed class Typed<TInput, TOutput> : ITyped {
    static readonly Type Target = Nullable.GetUnderlyingType(typeof(TInput)) ?? typeof(TInput);
    static readonly bool TakesFractions = Type.GetTypeCode(Target) >= TypeCode.Single;

    public Func<object, object> Bound(MethodInfo main) {
        var call = (Func<TInput, TOutput>)Delegate.CreateDelegate(typeof(Func<TInput, TOutput>), main);
        if (!typeof(Task).IsAssignableFrom(typeof(TOutput))) return input => call(Input(input));
        Type kind = typeof(Awaited<>).MakeGenericType(ResultOf(typeof(TOutput)));
        var awaited = (IAwaited)Activator.CreateInstance(kind);
        return input => awaited.Result(call(Input(input)));
    }

    static Type ResultOf(Type task) {
        while (!(task.IsGenericType && task.GetGenericTypeDefinition() == typeof(Task<>))) task = task.BaseType;
        return task.GetGenericArguments()[0];
    }

    static TInput Input(object input) {
        if (input is TInput) return (TInput)input;
        if (input == null && default(TInput) == null) return default(TInput);
        if (input is long && Target == typeof(BigInteger)) return (TInput)(object)(BigInteger)(long)input;
        if (input is long && Target.IsPrimitive || input is double && TakesFractions)
            return (TInput)Convert.ChangeType(input, Target);
        throw new ArgumentException("Main takes " + Target.Name + ", and the input is " +
            (input == null ? "null" : input.GetType().Name));
    }
}

interface IAwaited {
    object Result(object task);
}

sealed class Awaited<T> : IAwaited {
    public object Result(object task) {
        if (task == null) throw new NullReferenceException("Main returned null instead of a Task");
        return ((Task<T>)task).GetAwaiter().GetResult();
    }
}
}
