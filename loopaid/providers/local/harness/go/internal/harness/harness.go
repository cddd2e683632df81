// Package harness is what runs inside a session of Go, around a program or, before there is one, by itself.
//
// The protocol stands at the top of python.py, the format of rows in loopaid/wire/rows.py. A session begins as this
// package alone. With LOAD comes a program, built around the same package, in a memory file, and takes our place. At
// isolation `item` the parent of spawner.py takes it, and starts the program for each item.
package harness

import (
	"encoding/json"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
)

const (
	kindReady, kindLoaded, kindLoadFailed, kindEnd = 1, 2, 3, 4
	kindLoad, kindRun, kindStandBack               = 1, 2, 5

	frameBytes     = 5
	controlFdMin   = 48 // above what careless programs close, below where the kernel makes the threads wait for a larger table
	stackBytesMax  = 64 << 20
	settingsInside = "LOOPAID_HARNESS"
	broken         = 70 // exit code when the harness itself fails
)

type settings struct {
	Fds            [3]int            `json:"fds"`
	Program        int               `json:"program"`
	Limits         map[string]uint64 `json:"limits"`
	OutputBytesMax int               `json:"output_bytes_max"`
	StdoutBytesMax int               `json:"stdout_bytes_max"`
	StderrBytesMax int               `json:"stderr_bytes_max"`
	Sweep          bool              `json:"sweep"`
	Parent         []string          `json:"parent"`
	Child          []string          `json:"child"`
	Loaded         *string           `json:"loaded,omitempty"` // the digest of the program that takes our place
}

// Serve runs a program's Main on windows of items; nil waits for a program first. It never returns.
func Serve(main any) {
	var given settings
	if err := json.Unmarshal([]byte(os.Getenv(settingsInside)), &given); err != nil {
		os.Exit(broken)
	}
	os.Unsetenv(settingsInside)
	if main == nil {
		begin(given)
	}
	runProgram(given, main)
}

// begin waits until it is known who is to take our place.
func begin(given settings) {
	setLimits(given.Limits)
	down := &pipe{fd: given.Fds[0]}
	ready(given.Fds[1])
	for {
		switch kind, payload := down.readFrame(); kind {
		case kindStandBack:
			become(given.Parent, given)
		case kindLoad:
			digest := digestOf(payload)
			given.Loaded = &digest
			become([]string{"/proc/self/fd/" + strconv.Itoa(given.Program)}, given)
		}
	}
}

func ready(up int) {
	send(up, kindReady, map[string]string{"version": strings.TrimPrefix(runtime.Version(), "go")})
}

func digestOf(load []byte) string {
	var program struct {
		Digest string `json:"digest"`
	}
	if json.Unmarshal(load, &program) != nil {
		os.Exit(broken)
	}
	return program.Digest
}

func become(command []string, given settings) {
	text, _ := json.Marshal(given)
	syscall.Exec(command[0], command, append(os.Environ(), settingsInside+"="+string(text)))
	os.Exit(broken)
}

var limitKinds = map[string]int{"CPU": 0, "FSIZE": 1, "DATA": 2, "CORE": 4, "NPROC": 6, "NOFILE": 7}

func setLimits(limits map[string]uint64) {
	for name, value := range limits {
		var now syscall.Rlimit
		kind, known := limitKinds[name]
		if !known || syscall.Getrlimit(kind, &now) != nil {
			os.Exit(broken)
		}
		if value > now.Max {
			value = now.Max
		}
		if syscall.Setrlimit(kind, &syscall.Rlimit{Cur: value, Max: value}) != nil {
			os.Exit(broken)
		}
	}
}

func setRuntimeLimits(limits map[string]uint64) {
	debug.SetMaxStack(stackBytesMax)
	if memory := limits["DATA"]; memory > 0 {
		debug.SetMemoryLimit(int64(memory / 10 * 8)) // collect harder before the kernel refuses
	}
}
