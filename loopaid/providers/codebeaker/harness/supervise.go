// What a CodeBeaker server runs for a window of items in Go: the same as python.py beside it, which says what that is and
// what it prints. It is built beside the program, in the container, with what Go 1.19 has.
package main

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	frameHead, rowHead      = 5, 6
	loaded, loadFailed, end = 2, 3, 4
	readBytes               = 1 << 18
	bounded                 = `ulimit -d "$1"; ulimit -f "$2"; ulimit -c 0; exec "$3"`
)

var stop = []byte{3, 0, 0, 0, 0}

type order struct {
	Tag         string                     `json:"tag"`
	Frames      string                     `json:"frames"` // a character is a byte
	LoadS       float64                    `json:"load_s"`
	ItemS       float64                    `json:"item_s"`
	BudgetS     float64                    `json:"budget_s"`
	Count       int                        `json:"count"`
	RowBytesMax int                        `json:"row_bytes_max"`
	Cgroup      string                     `json:"cgroup"`
	Settings    map[string]json.RawMessage `json:"settings"`
}

// ending is what is said last.
type ending struct {
	How             string `json:"how"`
	Why             string `json:"why,omitempty"`
	Said            string `json:"said,omitempty"`
	Done            int    `json:"done"`
	Version         string `json:"version"`
	RanUs           int64  `json:"ran_us"`
	Stdout          string `json:"stdout"`
	Stderr          string `json:"stderr"`
	StdoutTruncated bool   `json:"stdout_truncated"`
	StderrTruncated bool   `json:"stderr_truncated"`
}

// heard is what came from a pipe; no data at its end.
type heard struct {
	rows bool
	data []byte
}

type supervisor struct {
	order
	command        *exec.Cmd
	stdout, stderr *os.File
	down           chan []byte
	events         chan heard
	up, rows       []byte
	done, ends     int
	ended          *ending
	began, loaded  time.Time
	limit          time.Duration
	stopped        bool
	kills          int
}

func main() {
	s := &supervisor{order: given(), down: make(chan []byte, 2), events: make(chan heard, 16)}
	s.kills = s.killsForMemory()
	s.start()
	s.began, s.limit = time.Now(), seconds(s.LoadS)
	for s.ended == nil {
		select {
		case event := <-s.events:
			s.take(event)
		case <-time.After(time.Until(s.due())):
			s.late()
		}
	}
	s.finish()
}

// given is the order, from the environment or the file that is our only argument.
func given() (found order) {
	payload := []byte(os.Getenv("LOOPAID_WINDOW"))
	os.Unsetenv("LOOPAID_WINDOW")
	if path := os.Args[1]; path != "" {
		payload, _ = os.ReadFile(path)
		os.Remove(path)
	}
	packed, err := zlib.NewReader(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(payload)))
	check(err)
	check(json.NewDecoder(packed).Decode(&found))
	return found
}

func (s *supervisor) start() {
	var ours, theirs [3]*os.File // down, up, rows
	for each := range ours {
		reader, writer, err := os.Pipe()
		check(err)
		ours[each], theirs[each] = reader, writer
	}
	ours[0], theirs[0] = theirs[0], ours[0]
	s.stdout, s.stderr = temporary(), temporary()
	var limits map[string]int
	check(json.Unmarshal(s.Settings["limits"], &limits))
	for name, value := range map[string]string{"fds": "[3,4,5]", "sweep": "false", "program": "-1"} {
		s.Settings[name] = json.RawMessage(value)
	}
	settings, err := json.Marshal(s.Settings)
	check(err)
	program := filepath.Join(filepath.Dir(os.Args[0]), "program")
	s.command = exec.Command("sh", "-c", bounded, "sh",
		strconv.Itoa(limits["DATA"]>>10), strconv.Itoa(limits["FSIZE"]>>9), program)
	s.command.Env = append(os.Environ(), "LOOPAID_HARNESS="+string(settings))
	s.command.Stdout, s.command.Stderr = s.stdout, s.stderr
	s.command.ExtraFiles = theirs[:]
	s.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	check(s.command.Start())
	for _, file := range theirs {
		file.Close()
	}
	go func() {
		for data := range s.down {
			ours[0].Write(data)
		}
	}()
	go s.read(ours[1], false)
	go s.read(ours[2], true)
	frames := make([]byte, 0, len(s.Frames))
	for _, char := range s.Frames {
		frames = append(frames, byte(char))
	}
	s.down <- frames
}

func (s *supervisor) read(pipe *os.File, rows bool) {
	for {
		data := make([]byte, readBytes)
		count, err := pipe.Read(data)
		if count > 0 {
			s.events <- heard{rows, data[:count]}
		}
		if err != nil {
			s.events <- heard{rows, nil}
			return
		}
	}
}

func (s *supervisor) take(event heard) {
	before, wasLoaded := s.done, s.loaded
	if event.data == nil {
		s.ends++
	} else if event.rows {
		s.rows = append(s.rows, event.data...)
		s.tellRows()
	} else {
		s.up = append(s.up, event.data...)
	}
	if s.ended == nil {
		s.takeFrames()
	}
	if s.ended == nil && s.ends == 2 {
		s.ended = s.howItExited()
	}
	if s.done > before || s.loaded != wasLoaded {
		s.began, s.limit = time.Now(), seconds(s.ItemS)
	}
}

func (s *supervisor) tellRows() {
	for len(s.rows) >= rowHead && s.ended == nil {
		size := int(binary.BigEndian.Uint32(s.rows[2:]))
		if size < rowHead || size > s.RowBytesMax || s.done == s.Count {
			s.ended = &ending{How: "violation", Why: "rows that the harness does not write"}
			return
		}
		if len(s.rows) < size {
			return
		}
		s.say("row", s.rows[:size])
		s.rows = s.rows[size:]
		s.done++
	}
}

// takeFrames acts on what the harness said; on its END when all rows that it wrote before are here.
func (s *supervisor) takeFrames() {
	for len(s.up) >= frameHead {
		size := frameHead + int(binary.BigEndian.Uint32(s.up[1:]))
		if len(s.up) < size {
			return
		}
		kind, payload := s.up[0], s.up[frameHead:size]
		var said struct {
			Done int `json:"done"`
		}
		switch kind {
		case loaded:
			s.loaded = time.Now()
		case loadFailed:
			s.ended = &ending{How: "load_failed", Said: string(payload)}
			return
		case end:
			if json.Unmarshal(payload, &said) == nil && said.Done > s.done && s.ends == 0 {
				return
			}
			s.ended = &ending{How: "end", Said: string(payload)}
			return
		}
		s.up = s.up[size:]
	}
}

func (s *supervisor) due() time.Time {
	due := s.began.Add(s.limit)
	if budget := s.loaded.Add(seconds(s.BudgetS)); !s.loaded.IsZero() && !s.stopped && budget.Before(due) {
		return budget
	}
	return due
}

// late ends the item that runs too long, unless it has just ended, or asks for no more of them.
func (s *supervisor) late() {
	for len(s.events) > 0 && s.ended == nil {
		s.take(<-s.events)
	}
	now := time.Now()
	if s.ended != nil || now.Before(s.due()) {
		return
	}
	if ran := now.Sub(s.began); ran < s.limit {
		s.stopped = true
		s.down <- stop
	} else if s.loaded.IsZero() {
		s.ended = &ending{How: "load_timeout"}
	} else {
		s.ended = &ending{How: "timeout", RanUs: ran.Microseconds()}
	}
}

func (s *supervisor) howItExited() *ending {
	s.command.Wait()
	status := s.command.ProcessState.Sys().(syscall.WaitStatus)
	if s.killsForMemory() > s.kills {
		return &ending{How: "out_of_memory", Why: "killed by the kernel: the container has no memory left"}
	}
	if !status.Signaled() {
		return &ending{How: "crashed", Why: fmt.Sprintf("exit code %d", status.ExitStatus())}
	}
	how := "crashed"
	if status.Signal() == syscall.SIGKILL {
		how = "killed"
	}
	return &ending{How: how, Why: "killed by " + status.Signal().String()}
}

// killsForMemory is how often the kernel has ended a process of this container, 0 if there is none.
func (s *supervisor) killsForMemory() int {
	for _, name := range []string{"memory.events", "memory/memory.oom_control"} {
		text, _ := os.ReadFile(filepath.Join(s.Cgroup, name))
		for _, line := range strings.Split(string(text), "\n") {
			if words := strings.Fields(line); len(words) == 2 && words[0] == "oom_kill" {
				count, _ := strconv.Atoi(words[1])
				return count
			}
		}
	}
	return 0
}

func (s *supervisor) finish() {
	if s.command.ProcessState == nil {
		syscall.Kill(-s.command.Process.Pid, syscall.SIGKILL)
		s.command.Process.Kill()
		s.command.Wait()
	}
	s.ended.Stdout, s.ended.StdoutTruncated = s.captured(s.stdout, "stdout_bytes_max")
	s.ended.Stderr, s.ended.StderrTruncated = s.captured(s.stderr, "stderr_bytes_max")
	s.ended.Done, s.ended.Version = s.done, strings.TrimPrefix(runtime.Version(), "go")
	text, err := json.Marshal(s.ended)
	check(err)
	s.say("end", text)
}

func (s *supervisor) captured(file *os.File, limit string) (text string, truncated bool) {
	var most int
	check(json.Unmarshal(s.Settings[limit], &most))
	data := make([]byte, most+1)
	count, _ := file.ReadAt(data, 0)
	if count > most {
		count, truncated = most, true
	}
	return strings.ToValidUTF8(string(data[:count]), "\ufffd"), truncated
}

func (s *supervisor) say(kind string, payload []byte) {
	_, err := io.WriteString(os.Stdout, s.Tag+" "+kind+" "+base64.StdEncoding.EncodeToString(payload)+"\n")
	check(err)
}

// temporary answers a file that nobody else finds; the harness appends to it, looks at it and empties it.
func temporary() *os.File {
	created, err := os.CreateTemp("", "loopaid-")
	check(err)
	defer os.Remove(created.Name())
	defer created.Close()
	file, err := os.OpenFile(created.Name(), os.O_RDWR|os.O_APPEND, 0)
	check(err)
	return file
}

func seconds(count float64) time.Duration { return time.Duration(count * float64(time.Second)) }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(70)
	}
}
