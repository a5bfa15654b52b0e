package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// roleEnv, if it is set, makes a program whose main function begins with Main
// run the clients of the process that started it.
const roleEnv = "BENCHMARK_CLIENTS"

const bell = '!' // JSON does not begin with it

// A command is one call of a Fleet's method, as a line of JSON.
type command struct {
	Call     string
	Options  Options
	N        int
	From     Place
	Number   int64
	On       bool
	Patience time.Duration
}

type answer struct {
	Report Report
	LastID string
	Error  string
}

// Main runs the clients and ends the process, if that is what it was started
// for; else it does nothing.
func Main() {
	if os.Getenv(roleEnv) == "" {
		return
	}
	if err := obey(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// obey carries out the commands that it reads.
func obey(r io.Reader, w io.Writer) error {
	commands, answers := json.NewDecoder(r), json.NewEncoder(w)
	var f *Fleet
	for {
		var c command
		if err := commands.Decode(&c); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		var a answer
		var err error
		switch c.Call {
		case "New":
			f, err = New(c.Options)
		case "Connect":
			a.Report, err = f.Connect(c.N, c.From, c.Patience)
		case "Await":
			a.Report, err = f.Await(c.Number, c.Patience)
		case "AwaitEnd":
			a.Report, err = f.AwaitEnd(c.Patience)
		case "Report":
			a.Report, a.LastID = f.Report(), f.LastID()
		case "Time":
			f.Time(c.On)
		case "HangUp":
			f.HangUp()
		case "Bell":
			f.Bell(c.Number, c.N, func() { w.Write([]byte{bell}) })
		default:
			err = fmt.Errorf("no call %q", c.Call)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// A Process is a Fleet in a process of its own. Its methods do what a Fleet's
// do.
type Process struct {
	cmd      *exec.Cmd
	commands io.WriteCloser
	pipe     *os.File
	answers  *bufio.Reader
}

// Start starts the program itself once more, to run the clients.
func Start(opts Options) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), roleEnv+"=1")
	p.cmd.Stderr = os.Stderr
	if p.commands, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	var w *os.File
	if p.pipe, w, err = os.Pipe(); err != nil {
		return nil, err
	}
	defer w.Close()
	p.cmd.Stdout = w
	p.answers = bufio.NewReader(p.pipe)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the clients: %w", err)
	}
	if _, err := p.call(command{Call: "New", Options: opts}); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) call(c command) (answer, error) {
	line, err := json.Marshal(c)
	if err != nil {
		return answer{}, err
	}
	if _, err := p.commands.Write(append(line, '\n')); err != nil {
		return answer{}, fmt.Errorf("the clients' process: %w", err)
	}
	line, err = p.answers.ReadBytes('\n')
	if err != nil {
		return answer{}, fmt.Errorf("the clients' process: %w", err)
	}
	line = bytes.TrimLeft(line, string(bell)) // which nobody waits for any more
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return answer{}, fmt.Errorf("the clients' process: %w", err)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

func (p *Process) Connect(n int, from Place, patience time.Duration) (Report, error) {
	a, err := p.call(command{Call: "Connect", N: n, From: from, Patience: patience})
	return a.Report, err
}

func (p *Process) Await(number int64, patience time.Duration) (Report, error) {
	a, err := p.call(command{Call: "Await", Number: number, Patience: patience})
	return a.Report, err
}

func (p *Process) AwaitEnd(patience time.Duration) (Report, error) {
	a, err := p.call(command{Call: "AwaitEnd", Patience: patience})
	return a.Report, err
}

// Report returns the last event ID of the first client as well.
func (p *Process) Report() (r Report, lastID string, err error) {
	a, err := p.call(command{Call: "Report"})
	return a.Report, a.LastID, err
}

func (p *Process) Time(on bool) error {
	_, err := p.call(command{Call: "Time", On: on})
	return err
}

func (p *Process) HangUp() error {
	_, err := p.call(command{Call: "HangUp"})
	return err
}

// Bell makes Rung return each time that every client has the next events, so
// that the server's process has as little to do with it as possible. No other
// method may be called while a ring is due.
func (p *Process) Bell(number int64, events int) error {
	_, err := p.call(command{Call: "Bell", Number: number, N: events})
	return err
}

// Rung waits for the bell, which a client that misses an event keeps silent for
// ever. After a wait in vain only Report tells more.
func (p *Process) Rung(patience time.Duration) error {
	p.pipe.SetReadDeadline(time.Now().Add(patience))
	defer p.pipe.SetReadDeadline(time.Time{})
	b, err := p.answers.ReadByte()
	if err != nil {
		return fmt.Errorf("waiting for the clients to have all events: %w", err)
	}
	if b != bell {
		return fmt.Errorf("the clients' process said %q", b)
	}
	return nil
}

// Close ends the process.
func (p *Process) Close() error {
	p.commands.Close()
	err := p.cmd.Wait()
	p.pipe.Close()
	return err
}
