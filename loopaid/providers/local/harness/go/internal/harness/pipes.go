package harness

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"unsafe"
)

const pollIn = 1

type pollFd struct {
	fd      int32
	events  int16
	revents int16
}

// pipe reads frames from the daemon, and no byte beyond the frame that is due.
type pipe struct {
	fd     int
	buffer []byte
}

func (p *pipe) readFull(into []byte) {
	for len(into) > 0 {
		count, err := syscall.Read(p.fd, into)
		if err == syscall.EINTR {
			continue
		}
		if count <= 0 || err != nil {
			os.Exit(0) // the daemon is gone
		}
		into = into[count:]
	}
}

// readFrame waits for a frame. The payload is valid until the next one is read.
func (p *pipe) readFrame() (kind byte, payload []byte) {
	var head [frameBytes]byte
	p.readFull(head[:])
	length := int(binary.BigEndian.Uint32(head[1:]))
	if cap(p.buffer) < length {
		p.buffer = make([]byte, length)
	}
	payload = p.buffer[:length]
	p.readFull(payload)
	return head[0], payload
}

// stopRequested looks without waiting. Between RUN and END the daemon sends nothing but STOP.
func (p *pipe) stopRequested() bool {
	watched, noTime := pollFd{fd: int32(p.fd), events: pollIn}, syscall.Timespec{}
	count, _, err := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&watched)), 1,
		uintptr(unsafe.Pointer(&noTime)), 0, 0, 0)
	if err != 0 || count == 0 {
		return false
	}
	if watched.revents&pollIn == 0 {
		os.Exit(0) // the daemon is gone
	}
	p.readFrame()
	return true
}

func writeAll(fd int, data []byte) {
	for len(data) > 0 {
		count, err := syscall.Write(fd, data)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			os.Exit(broken)
		}
		data = data[count:]
	}
}

func send(fd int, kind byte, value any) {
	payload, err := json.Marshal(value)
	if err != nil {
		os.Exit(broken)
	}
	frame := make([]byte, frameBytes, frameBytes+len(payload))
	frame[0] = kind
	binary.BigEndian.PutUint32(frame[1:], uint32(len(payload)))
	writeAll(fd, append(frame, payload...))
}

// duplicate answers a copy of a descriptor above what careless programs close, which children do not inherit.
func duplicate(fd int) int {
	high, _, err := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_DUPFD_CLOEXEC, controlFdMin)
	if err != 0 {
		os.Exit(broken)
	}
	return int(high)
}

func lifted(fd int) int {
	high := duplicate(fd)
	syscall.Close(fd)
	return high
}

// capture is one of the two memory files behind stdout and stderr.
type capture struct {
	fd    int
	limit int
}

// take answers what was written since the last time, and forgets it.
func (c capture) take() (text string, truncated bool, size int) {
	end, err := syscall.Seek(c.fd, 0, 1)
	if err != nil || end == 0 {
		return "", false, 0
	}
	data := make([]byte, c.limit+1)
	count, _ := syscall.Pread(c.fd, data, 0)
	c.forget()
	if count > c.limit {
		count, truncated = c.limit, true
	}
	if count > 0 {
		text = strings.ToValidUTF8(string(data[:count]), "\ufffd")
	}
	return text, truncated, int(end)
}

func (c capture) forget() {
	syscall.Ftruncate(c.fd, 0)
	syscall.Seek(c.fd, 0, 0)
}

// livesInAPidNamespace: kill(-1) is for a sandbox alone. Our own pid is small there, and pid 1 is bubblewrap's.
func livesInAPidNamespace() bool {
	name, err := os.ReadFile("/proc/1/comm")
	return err == nil && os.Getpid() < 10 && os.Getppid() <= 1 && strings.TrimSpace(string(name)) == "bwrap"
}
