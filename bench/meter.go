// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bench/turns"
)

// The ports of a server. A VIP and its backend have one each, so that no port of a client meets the same server
// port by both ways while connections before are in TIME_WAIT.
const (
	portStream = 5201
	portDirect = 5001
	portVIP    = 5002
)

// grace is how much longer than the run a process may take.
const grace = 15 * time.Second

// meters measure from one sandbox to another.
type meters struct {
	duration   time.Duration
	congestion string
	cpu        unix.CPUSet // that turns are taken on
}

func newMeters(o Options) (*meters, string, error) {
	cpu, err := oneCPU()
	if err != nil {
		return nil, "", err
	}
	m := &meters{duration: o.Duration, congestion: "cubic", cpu: cpu}
	note := "TCP with cubic"
	if err := tryCongestion(m.congestion); err != nil {
		m.congestion = "reno"
		note = "this kernel has no cubic (CONFIG_TCP_CONG_CUBIC): TCP is measured with reno"
	}
	return m, note, nil
}

// tryCongestion asks for a congestion control on a socket, as iperf3 does: with CAP_NET_ADMIN any may be had, whatever
// net.ipv4.tcp_allowed_congestion_control says, and the kernel loads its module.
func tryCongestion(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
}

// serve starts the servers of every meter in a sandbox; they end with our namespaces.
func (m *meters) serve(s sandbox) error {
	stream := exec.Command("iperf3", "-s", "-p", strconv.Itoa(portStream))
	if err := s.start(stream, nil); err != nil {
		return fmt.Errorf("start the iperf3 server: %w", err)
	}
	any4 := netip.IPv4Unspecified()
	if err := s.start(helper(helperServe, m.congestion,
		netip.AddrPortFrom(any4, portDirect).String(), netip.AddrPortFrom(any4, portVIP).String()), &m.cpu); err != nil {
		return fmt.Errorf("start the server: %w", err)
	}
	return nil
}

// await waits until a server answers.
func (m *meters) await(p *pair, path string) error {
	end := time.Now().Add(grace)
	for {
		_, err := m.turns(p, path, turns.CRR, time.Millisecond)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// turns runs the client of package turns.
func (m *meters) turns(p *pair, path, kind string, duration time.Duration) (turns.Report, error) {
	addr, port := p.direct, uint16(portDirect)
	if path == pathVIP {
		addr, port = p.vip, portVIP
	}
	var r turns.Report
	cmd := helper(helperTurn, kind, netip.AddrPortFrom(addr, port).String(), duration.String(), m.congestion)
	out, err := p.client.output(cmd, &m.cpu, duration+grace)
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("take turns (%s) with %s: %w", kind, addr, err)
	}
	return r, nil
}

// measured is what one run gives, by metric.
type measured map[string]float64

// runs are what is measured of each side, in this order.
var runs = []struct {
	name string
	run  func(*meters, *pair, string) (measured, error)
}{
	{"stream", (*meters).stream},
	{"TCP_RR", func(m *meters, p *pair, path string) (measured, error) {
		r, err := m.turns(p, path, turns.RR, m.duration)
		return measured{tcpRate: r.PerSecond, tcpP50: r.P50, tcpP99: r.P99}, err
	}},
	{"UDP_RR", func(m *meters, p *pair, path string) (measured, error) {
		r, err := m.turns(p, path, turns.UDPRR, m.duration)
		return measured{udpP50: r.P50, udpP99: r.P99}, err
	}},
	{"TCP_CRR", (*meters).connections},
}

func (m *meters) connections(p *pair, path string) (measured, error) {
	r, err := m.turns(p, path, turns.CRR, m.duration)
	return measured{connectRate: r.PerSecond}, err
}

// iperf is what we read of iperf3's report.
type iperf struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			BitsPerSecond float64 `json:"bits_per_second"`
			Bytes         float64 `json:"bytes"`
		} `json:"sum_received"`
	} `json:"end"`
}

// stream runs iperf3, whose server takes one client at a time and may not have finished with the one before.
func (m *meters) stream(p *pair, path string) (measured, error) {
	addr := p.direct
	if path == pathVIP {
		addr = p.vip
	}
	var err error
	for range 10 {
		var v measured
		if v, err = m.streamOnce(p.client, addr); err == nil {
			return v, nil
		}
		if !errors.Is(err, errBusy) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, fmt.Errorf("iperf3 to %s: %w", addr, err)
}

var errBusy = errors.New("the server is busy")

func (m *meters) streamOnce(client sandbox, addr netip.Addr) (measured, error) {
	cmd := exec.Command("iperf3", "-c", addr.String(), "-p", strconv.Itoa(portStream), "-C", m.congestion,
		"-t", strconv.Itoa(int(m.duration.Seconds())), "-J")
	before, err := busySeconds()
	if err != nil {
		return nil, err
	}
	out, runErr := client.output(cmd, nil, m.duration+grace)
	after, err := busySeconds()
	if err != nil {
		return nil, err
	}
	var report iperf
	if err := json.Unmarshal(out, &report); err != nil {
		return nil, errors.Join(runErr, err)
	}
	switch {
	case strings.Contains(report.Error, "busy"), strings.Contains(report.Error, "refused"):
		return nil, fmt.Errorf("%w: %s", errBusy, report.Error)
	case report.Error != "":
		return nil, errors.New(report.Error)
	case runErr != nil:
		return nil, runErr
	case report.End.Received.Bytes == 0:
		return nil, errors.New("nothing arrived")
	}
	received := report.End.Received
	return measured{streamRate: received.BitsPerSecond / 1e9, cpuPerGB: (after - before) / (received.Bytes / 1e9)}, nil
}

// busySeconds is how long the CPUs of the whole machine have worked since it started. What softirqs do for a stream
// is in nobody's account but this.
func busySeconds() (float64, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the CPU time: %w", err)
	}
	return parseBusy(string(stat))
}

// parseBusy adds up the first line, `cpu user nice system idle iowait irq softirq steal guest guest_nice`, without
// idle and iowait, and without guests, which are in user already.
func parseBusy(stat string) (float64, error) {
	const userHZ = 100 // the same on every architecture that Go knows
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the CPU time: /proc/stat begins with %q", line)
	}
	sum := 0.0
	for i, text := range fields[1:9] {
		ticks, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU time: %w", err)
		}
		if i != 3 && i != 4 {
			sum += ticks
		}
	}
	return sum / userHZ, nil
}

// output runs a command in the sandbox and returns what it prints. An error holds what it complained of.
func (s sandbox) output(cmd *exec.Cmd, cpus *unix.CPUSet, limit time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := s.start(cmd, cpus); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // the wait tells
	defer stop()
	err := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s did not end within %s", cmd.Args[0], limit)
	case err != nil && complaint.Len() > 0:
		return out.Bytes(), errors.New(strings.TrimSpace(complaint.String()))
	}
	return out.Bytes(), err
}
