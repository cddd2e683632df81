// What a program may know about the item it works on.

using System.Collections.Generic;
using System.Globalization;
using System.Security.Cryptography;
using System.Text;

public static class LoopaidItem {
    internal static Dictionary<string, object> Window;
    internal static int Position;
    internal static string Digest = "";

    public static string Id {
        get {
            var ids = (List<object>)Window["ids"];
            return ids == null
                ? ((long)Window["first"] + Position).ToString(CultureInfo.InvariantCulture)
                : (string)ids[Position];
        }
    }

    public static int Attempt {
        get { return (int)(long)Window["attempt"]; }
    }

    public static string IdempotencyKey {
        get {
            byte[] bytes = Encoding.UTF8.GetBytes(Window["batch"] + "\0" + Id + "\0" + Digest);
            var key = new StringBuilder();
            using (var hash = new SHA256Managed())  // Create looks for its class in files, for 80 ms
                foreach (byte each in hash.ComputeHash(bytes)) key.Append(each.ToString("x2"));
            return key.ToString();
        }
    }
}
