package meter

import (
	"os/exec"
	"syscall"
	"testing"
	"time"
)

func TestCPUOfAProcessIncludesItsChildren(t *testing.T) {
	// The outer shell waits for the inner one.
	shell := exec.Command("sh", "-c", "sh -c 'while :; do :; done'; true")
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		syscall.Kill(-shell.Process.Pid, syscall.SIGKILL) // both
		shell.Wait()
	}()
	start := time.Now()
	for used := time.Duration(0); used < 50*time.Millisecond; time.Sleep(time.Millisecond) {
		var err error
		if used, err = CPUOf(shell.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if elapsed := time.Since(start); elapsed > 10*time.Second || used > elapsed+100*time.Millisecond {
			t.Fatalf("got %v of CPU time after %v", used, elapsed)
		}
	}
}
