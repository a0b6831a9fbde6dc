// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
)

// Run measures. It refuses what cannot be measured before it makes anything, and leaves nothing behind when ctx ends.
func Run(ctx context.Context, o Options, p Progress) (Result, error) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return Result{}, ErrNoIperf3
	}
	lock, err := net.Listen("unix", "@mustang-bench") // ends with the process, and leaves no file
	if err != nil {
		return Result{}, errors.New("another bench is running: two would disturb each other, so wait for it")
	}
	defer lock.Close()
	load := loadAverage()
	modes, notes, err := offered(o)
	if err != nil {
		return Result{}, err
	}
	j := job{Options: o, Modes: modes}
	j.Options.Modes = nil
	var files []*os.File
	if o.Docker == "auto" {
		d, err := startDocker(ctx, o.Socket, modes)
		defer d.remove()
		if ctx.Err() != nil {
			return Result{}, errInterrupted
		}
		if err != nil {
			notes = append(notes, fmt.Sprintf("Docker's own networks are left out: %v", err))
		}
		notes = append(notes, d.notes...)
		j.Docker, files = d.inherited()
	}
	values, more, err := runInside(ctx, j, files, p)
	if err != nil {
		return Result{}, err
	}
	return Result{Rows: figures(values), Notes: slices.Concat([]string{about(o, load)}, notes, more)}, nil
}

// about says on what the figures were taken.
func about(o Options, load string) string {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("?")
	}
	return fmt.Sprintf("Linux %s, %d CPUs, load before: %s; %d interleaved runs of %s each",
		strings.TrimSpace(string(kernel)), runtime.NumCPU(), load, o.Runs, o.Duration)
}

// loadAverage is the machine's: what else runs there widens the intervals.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(text)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return "unknown"
}

var errInterrupted = errors.New("interrupted: nothing is printed from half a measurement, and nothing is left of it")

// offered are the modes to measure. A mode that was asked for by name must be there.
func offered(o Options) (modes, notes []string, err error) {
	wanted := o.Modes
	if len(wanted) == 0 {
		wanted = Modes()
	}
	for _, mode := range Modes() { // in their order, and each once
		if !slices.Contains(wanted, mode) {
			continue
		}
		err := probe(mode)
		switch {
		case err == nil:
			modes = append(modes, mode)
		case len(o.Modes) > 0:
			return nil, nil, fmt.Errorf("--modes: %w", err)
		default:
			notes = append(notes, err.Error())
		}
	}
	if len(modes) == 0 {
		return nil, nil, errors.New("this kernel offers no mode: " + strings.Join(notes, "; "))
	}
	return modes, notes, nil
}

// probe tries to connect a pair plainly: what a kernel can do no version tells.
func probe(mode string) error {
	p, host, err := newPlain(mode)
	if err != nil {
		return err
	}
	p.close()
	host.close()
	return nil
}

// runInside starts the copy in namespaces of its own and reads what it measures.
func runInside(ctx context.Context, j job, files []*os.File, p Progress) (series, []string, error) {
	cgroup, err := newCgroup(j.EBPF != "off")
	if err != nil {
		return nil, nil, err
	}
	defer cgroup.remove()
	in, err := json.Marshal(j)
	if err != nil {
		return nil, nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer read.Close()
	var complaint bytes.Buffer
	cmd := helper(helperInside)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &complaint
	cmd.ExtraFiles = append([]*os.File{write, cgroup.dir}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// process 1 of its own: with it every process of the measurement ends, and with these their namespaces
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS,
		// a Ctrl-C is ours to handle; if we are killed, so is the copy
		Setpgid: true, Pdeathsig: syscall.SIGKILL,
		UseCgroupFD: cgroup.path != "", CgroupFD: int(cgroup.dir.Fd()),
	}
	err = start(cmd)
	write.Close()
	if err != nil {
		return nil, nil, fmt.Errorf("make namespaces for the measurement: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // the wait tells
	defer stop()
	defer p.End()
	values, notes, err := collect(read, p)
	_ = cmd.Process.Kill() // it has told everything, or will not
	_ = cmd.Wait()         // as a signal, which was ours
	switch {
	case ctx.Err() != nil:
		return nil, nil, errInterrupted
	case err != nil && complaint.Len() > 0:
		return nil, nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(complaint.String()))
	}
	return values, notes, err
}

// start starts a command whose end comes with ours: Pdeathsig means the thread that started it, so that is kept.
func start(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		select {}
	}()
	return <-started
}

// cgroup is one of our own, so that the socket hooks see nobody else.
type cgroup struct {
	path string // "" without eBPF
	dir  *os.File
}

const cgroupPrefix = "mustang-bench-"

func newCgroup(wanted bool) (c cgroup, err error) {
	if !wanted {
		c.dir, err = os.Open(os.DevNull)
		return c, err
	}
	root, err := bpf.CgroupRoot()
	if err != nil {
		return c, err
	}
	// those of benches that were killed outright; one with processes in it stays
	left, err := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
	if err != nil {
		return c, err
	}
	for _, path := range left {
		_ = unix.Rmdir(path)
	}
	if c.path, err = os.MkdirTemp(root, cgroupPrefix); err != nil {
		return c, fmt.Errorf("make a cgroup: %w", err)
	}
	if c.dir, err = os.Open(c.path); err != nil {
		return c, errors.Join(fmt.Errorf("open the cgroup: %w", err), os.Remove(c.path))
	}
	return c, nil
}

// remove waits for the last process to be gone.
func (c cgroup) remove() {
	c.dir.Close()
	if c.path == "" {
		return
	}
	for range 200 {
		if err := unix.Rmdir(c.path); !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
