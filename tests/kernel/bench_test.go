// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
)

// mustang builds the program.
func mustang(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mustang")
	cmd := exec.Command("go", "build", "-o", file, "../../cmd/mustang")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return file
}

// traces are what a bench could leave behind, besides what begin looks at.
func traces(t *testing.T, program string) []string {
	t.Helper()
	root, err := bpf.CgroupRoot()
	require.NoError(t, err)
	var out []string
	for _, pattern := range []string{root + "/mustang-bench-*", "/sys/fs/bpf/tc*", "/tmp/bpf", "/run/netns/*"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		out = append(out, found...)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	require.NoError(t, err)
	for _, exe := range processes {
		if is, err := os.Readlink(exe); err == nil && strings.HasPrefix(is, program) {
			out = append(out, exe)
		}
	}
	return out
}

func TestBench(t *testing.T) {
	begin(t)
	program := mustang(t)
	before := traces(t, program)
	require.Empty(t, before)
	bench := func(args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
		cmd := exec.Command(program, append([]string{"bench", "--docker", "off", "--modes", "veth"}, args...)...)
		var out, complaint bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &complaint
		return cmd, &out, &complaint
	}

	t.Run("every figure", func(t *testing.T) {
		cmd, out, complaint := bench("--runs", "1", "--duration", "1s", "--services", "3", "-o", "json")
		require.NoError(t, cmd.Run(), "%s", complaint)
		var rows []struct {
			Mode, Path, Via, Metric, Against string
			EBPF                             bool
			Value, Low, High                 float64
			Runs, Services                   int
		}
		require.NoError(t, json.Unmarshal(out.Bytes(), &rows))
		seen := map[string]bool{}
		for _, r := range rows {
			require.Positive(t, r.Value, "%+v", r)
			require.LessOrEqual(t, r.Low, r.Value)
			require.LessOrEqual(t, r.Value, r.High)
			require.Equal(t, 1, r.Runs)
			if r.Against == "" && r.Services < 2 {
				seen[strings.Join([]string{r.Mode, map[bool]string{true: "ebpf"}[r.EBPF], r.Path, r.Metric}, " ")] = true
			}
		}
		for _, way := range []string{"loopback  direct", "veth  direct", "veth  vip", "veth ebpf direct", "veth ebpf vip"} {
			for _, metric := range []string{
				"tcp_stream", "cpu_per_gb", "tcp_rr", "tcp_rr_p50", "tcp_rr_p99", "udp_rr_p50", "udp_rr_p99", "tcp_crr",
			} {
				require.True(t, seen[way+" "+metric], "%s of %s is missing", metric, way)
			}
		}
		require.Empty(t, traces(t, program))
	})

	// once the measurement runs, a signal ends it
	interrupt := func(t *testing.T, signal syscall.Signal, args ...string) {
		cmd, out, complaint := bench(args...)
		require.NoError(t, cmd.Start())
		root, err := bpf.CgroupRoot()
		require.NoError(t, err)
		measures := func() bool {
			members, _ := filepath.Glob(root + "/mustang-bench-*/cgroup.procs")
			if len(members) == 0 {
				return false
			}
			pids, _ := os.ReadFile(members[0])
			return strings.Count(string(pids), "\n") > 6 // the copy, and the servers of three pairs
		}
		require.Eventually(t, measures, 20*time.Second, 10*time.Millisecond)
		require.NoError(t, cmd.Process.Signal(signal))
		require.Error(t, cmd.Wait())
		require.Equal(t, 1, cmd.ProcessState.ExitCode())
		require.Empty(t, out.String())
		require.Contains(t, complaint.String(), "interrupted: nothing is printed from half a measurement")
		require.Empty(t, traces(t, program))
	}
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run("interrupted by "+signal.String(), func(t *testing.T) { interrupt(t, signal) })
	}

	t.Run("a mode by name, that the kernel has or lacks", func(t *testing.T) {
		run(t, "ip link add p0 type veth peer name p1")
		t.Cleanup(func() { run(t, "ip link del p0") })
		if exec.Command("ip", "link", "add", "i0", "link", "p0", "type", "ipvlan").Run() == nil {
			run(t, "ip link del i0")
			interrupt(t, syscall.SIGINT, "--modes", "ipvlan")
			return
		}
		cmd, out, complaint := bench("--modes", "ipvlan")
		require.Error(t, cmd.Run())
		require.Empty(t, out.String())
		require.Contains(t, complaint.String(), "this kernel has no ipvlan: it needs CONFIG_IPVLAN")
		require.Empty(t, traces(t, program))
	})
}
