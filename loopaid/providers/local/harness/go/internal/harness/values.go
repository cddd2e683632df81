package harness

import (
	"encoding"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"sort"
	"strings"
)

const (
	depthMax      = 512
	traceBytesMax = 16384
	framesMax     = 100
)

type noResult struct{}

// NoResult is what a script's result is until it is assigned.
var NoResult any = &noResult{}

// program is a Main of any signature: `decode` makes its argument of JSON, `call` calls it.
type program struct {
	decode func([]byte) (any, byte, *failure)
	call   func(any) (any, error)
}

var errorType = reflect.TypeOf((*error)(nil)).Elem()

// adapt takes func(T) R and func(T) (R, error), whatever T can be made of JSON and R into it.
func adapt(main any) (program, *failure) {
	switch main := main.(type) {
	case func(any) any:
		return program{decodeInto[any], func(input any) (any, error) { return main(input), nil }}, nil
	case func(any) (any, error):
		return program{decodeInto[any], main}, nil
	case func(map[string]any) any:
		return program{decodeInto[map[string]any], func(input any) (any, error) {
			return main(input.(map[string]any)), nil
		}}, nil
	case func(map[string]any) (any, error):
		return program{decodeInto[map[string]any], func(input any) (any, error) {
			return main(input.(map[string]any))
		}}, nil
	}
	kind := reflect.TypeOf(main)
	if kind.Kind() != reflect.Func || kind.NumIn() != 1 || kind.IsVariadic() || kind.NumOut() < 1 || kind.NumOut() > 2 ||
		(kind.NumOut() == 2 && kind.Out(1) != errorType) || reflect.ValueOf(main).IsNil() {
		message := "Main must be a func(input T) R or a func(input T) (R, error), and is a " + kind.String()
		return program{}, &failure{Type: "CompileError", Message: message}
	}
	function, takes := reflect.ValueOf(main), kind.In(0)
	return program{
		func(text []byte) (any, byte, *failure) {
			input := reflect.New(takes)
			status, problem := decoded(text, input.Interface())
			return input.Elem(), status, problem
		},
		func(input any) (any, error) {
			returned := function.Call([]reflect.Value{input.(reflect.Value)})
			if len(returned) == 2 && !returned[1].IsNil() {
				return nil, returned[1].Interface().(error)
			}
			return returned[0].Interface(), nil
		},
	}, nil
}

func decodeInto[T any](text []byte) (any, byte, *failure) {
	var input T
	status, problem := decoded(text, &input)
	return input, status, problem
}

// decoded tells an input that Go does not read from one that is not what Main takes.
func decoded(text []byte, into any) (status byte, problem *failure) {
	defer func() {
		if reason := recover(); reason != nil { // an UnmarshalJSON of the program
			status, problem = statusProgramError, describePanic(reason)
		}
	}()
	err := json.Unmarshal(text, into)
	if err == nil {
		return statusOK, nil
	}
	if json.Valid(text) {
		return statusProgramError, describeError(err)
	}
	return statusInvalidInput, &failure{Type: "InvalidInput", Message: clipped(err.Error(), messageBytesMax)}
}

// isPlain tells whether JSON says all of a value; false also when it takes a closer look to tell.
func isPlain(value any, depth int) bool {
	switch value := value.(type) {
	case nil, bool, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
		return true
	case float64:
		return value-value == 0
	case []any:
		for _, part := range value {
			if depth == depthMax || !isPlain(part, depth+1) {
				return false
			}
		}
		return true
	case map[string]any:
		for _, part := range value {
			if depth == depthMax || !isPlain(part, depth+1) {
				return false
			}
		}
		return true
	}
	return false
}

// offender answers the place and kind of the first part of a value that JSON has no word for, "" for none.
func offender(value any) string {
	where, what := find(reflect.ValueOf(value), "output", 0, nil)
	if what == "" {
		return ""
	}
	return where + ": " + what
}

var (
	jsonMarshaler = reflect.TypeOf((*json.Marshaler)(nil)).Elem()
	textMarshaler = reflect.TypeOf((*encoding.TextMarshaler)(nil)).Elem()
)

func find(value reflect.Value, path string, depth int, parents []uintptr) (where, what string) {
	if !value.IsValid() || value.Type().Implements(jsonMarshaler) || value.Type().Implements(textMarshaler) {
		return "", ""
	}
	if depth > depthMax {
		return "output", "nesting too deep"
	}
	switch value.Kind() {
	case reflect.Float32, reflect.Float64:
		if number := value.Float(); math.IsNaN(number) || math.IsInf(number, 0) {
			return path, fmt.Sprint(number)
		}
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return path, value.Type().String()
	case reflect.Interface:
		return find(value.Elem(), path, depth, parents)
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if value.IsNil() {
			return "", ""
		}
		for _, parent := range parents {
			if parent == value.Pointer() && (value.Kind() != reflect.Slice || value.Len() > 0) {
				return path, "a cycle"
			}
		}
		parents = append(parents[:len(parents):len(parents)], value.Pointer())
	}
	switch value.Kind() {
	case reflect.Pointer:
		return find(value.Elem(), path, depth+1, parents)
	case reflect.Map:
		return findInMap(value, path, depth, parents)
	case reflect.Slice, reflect.Array:
		if value.Type().Elem().Kind() == reflect.Uint8 {
			return "", ""
		}
		for each := 0; each < value.Len(); each++ {
			if where, what = find(value.Index(each), fmt.Sprintf("%s[%d]", path, each), depth+1, parents); what != "" {
				return where, what
			}
		}
	case reflect.Struct:
		return findInStruct(value, path, depth, parents)
	}
	return "", ""
}

func findInMap(value reflect.Value, path string, depth int, parents []uintptr) (where, what string) {
	switch value.Type().Key().Kind() {
	case reflect.String, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
	default:
		if !value.Type().Key().Implements(textMarshaler) {
			return path, "a key of type " + value.Type().Key().String()
		}
	}
	keys := value.MapKeys()
	sort.Slice(keys, func(one, other int) bool { return fmt.Sprint(keys[one]) < fmt.Sprint(keys[other]) })
	for _, key := range keys {
		if where, what = find(value.MapIndex(key), path+"."+fmt.Sprint(key), depth+1, parents); what != "" {
			return where, what
		}
	}
	return "", ""
}

func findInStruct(value reflect.Value, path string, depth int, parents []uintptr) (where, what string) {
	for each := 0; each < value.NumField(); each++ {
		field := value.Type().Field(each)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if (!field.IsExported() && !field.Anonymous) || name == "-" ||
			(strings.Contains(options, "omitempty") && value.Field(each).IsZero()) {
			continue
		}
		if name == "" {
			name = field.Name
		}
		if where, what = find(value.Field(each), path+"."+name, depth+1, parents); what != "" {
			return where, what
		}
	}
	return "", ""
}

// --- errors

func describeError(err error) *failure {
	return &failure{Type: clipped(fmt.Sprintf("%T", err), nameBytesMax), Message: clipped(textOf(err), messageBytesMax)}
}

// describePanic is called while the panicking functions are still on the stack.
func describePanic(reason any) *failure {
	kind, message := "panic", clipped(textOf(reason), messageBytesMax)
	if _, isError := reason.(error); isError {
		kind = clipped(fmt.Sprintf("%T", reason), nameBytesMax)
	}
	return &failure{Type: kind, Message: message, Traceback: clipped("panic: "+message+"\n\n"+trace(), traceBytesMax)}
}

// textOf makes a text of what a program panics with; Error and String are the program's, and may panic too.
func textOf(reason any) (text string) {
	defer func() {
		if recover() != nil {
			text = "<no message: to make a text of it failed>"
		}
	}()
	if err, isError := reason.(error); isError {
		return err.Error()
	}
	return fmt.Sprint(reason)
}

const ours, theirs = "loopaid_item/internal/harness.", "loopaid_item/program."

// trace answers the program's functions on the stack, innermost first, as Go prints them.
func trace() string {
	var text strings.Builder
	pcs := make([]uintptr, framesMax)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	begun := false
	for {
		frame, more := frames.Next()
		inside := strings.HasPrefix(frame.Function, ours)
		if inside && begun {
			break
		}
		if !inside && !strings.HasPrefix(frame.Function, "runtime.") && !strings.HasPrefix(frame.Function, "reflect.") {
			begun = true
			name, file := frame.Function, frame.File
			if strings.HasPrefix(name, theirs) {
				name, file = "main."+name[len(theirs):], file[strings.LastIndexByte(file, '/')+1:]
			}
			fmt.Fprintf(&text, "%s\n\t%s:%d\n", name, file, frame.Line)
		}
		if !more {
			break
		}
	}
	return text.String()
}

func clipped(text string, most int) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most/2], "") + "\n  ...\n" + strings.ToValidUTF8(text[len(text)-most/2:], "")
}
