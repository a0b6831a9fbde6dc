// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/driver/link"
)

// inner is what a device of the tests becomes in a sandbox.
func inner(name, address string) link.Inner {
	return link.Inner{
		Name: name, Addrs: []netip.Prefix{netip.MustParsePrefix(address)}, Routes: []netip.Prefix{netip.MustParsePrefix("10.96.1.0/24")},
		Gateway: netip.MustParseAddr("10.8.0.1"),
	}
}

func TestAPairIsMadeInASandbox(t *testing.T) {
	begin(t)
	path := netns(t, "one")
	p := pair()
	p.Into, p.Peer = path, "eth0"
	_, err := host.CreatePair(p)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, host.Delete(pair().Host, owner)) })
	in, err := host.FindInside(path, "eth0")
	require.NoError(t, err)
	require.Equal(t, mac, in.MAC)
	require.NotZero(t, in.Peer)

	p.Host = "msttaken0000"
	_, err = host.CreatePair(p)
	require.ErrorIs(t, err, link.ErrDeviceExists)
	p.Into = "/run/netns/none"
	_, err = host.CreatePair(p)
	require.ErrorIs(t, err, link.ErrNoNetns)
	_, err = host.Find(p.Host)
	require.ErrorIs(t, err, link.ErrNoDevice, "neither end is made")
}

func TestADeviceIsMovedIntoASandboxAndSetUpThere(t *testing.T) {
	begin(t)
	path := netns(t, "one")
	newPair(t)
	require.ErrorIs(t, host.MoveInto(pair().Peer, path, "lo"), link.ErrDeviceExists)
	_, err := host.Find(pair().Peer)
	require.NoError(t, err, "it is still here")
	require.ErrorIs(t, host.MoveInto(pair().Peer, "/run/netns/none", "eth0"), link.ErrNoNetns)
	require.NoError(t, host.MoveInto(pair().Peer, path, "eth0"))
	require.NoError(t, host.SetUpInside(path, inner("eth0", "10.8.0.2/24")))
	in, err := host.FindInside(path, "eth0")
	require.NoError(t, err)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.8.0.2/24")}, in.Addrs)
	require.Contains(t, run(t, "ip -n one link show eth0"), ",UP")
	require.NotContains(t, run(t, "ip -n one -6 addr show eth0"), "inet6", "without an address of IPv6 it takes no part in that")

	// a second device leaves the routes of the first, which goes on when it is gone
	before := run(t, "ip -n one route")
	run(t, "ip -n one link add second type veth peer name other")
	require.NoError(t, host.SetUpInside(path, inner("second", "10.9.0.2/24")))
	run(t, "ip -n one link del second")
	require.Equal(t, before, run(t, "ip -n one route"))
	routes, err := host.RoutesInside(path)
	require.NoError(t, err)
	for _, want := range []string{"0.0.0.0/0", "10.96.1.0/24", "10.8.0.0/24"} {
		require.Contains(t, routes, netip.MustParsePrefix(want))
	}
}

func TestASlaveIsRemovedFromASandboxByItsOwner(t *testing.T) {
	begin(t)
	path := netns(t, "one")
	run(t, "ip -n one link add mine type veth peer name other")
	run(t, "ip -n one link set mine alias mustang:"+owner)
	require.NoError(t, host.RemoveInside(path, "somebody"))
	require.Contains(t, run(t, "ip -n one link"), "mine")
	for range 2 {
		require.NoError(t, host.RemoveInside(path, owner))
		require.NotContains(t, run(t, "ip -n one link"), "mine")
	}
	require.NoError(t, host.RemoveInside("/run/netns/none", owner))
}

func TestWhoseDevicesAreInSandboxes(t *testing.T) {
	begin(t)
	path := netns(t, "one")
	newPair(t)
	run(t, "ip link add parent type veth peer name other")
	t.Cleanup(func() { run(t, "ip link del parent") })
	_, err := host.CreateSlave(link.Slave{Owner: "slave", Name: "mspslave", Parent: "parent", Type: "macvlan", Mode: "bridge", MAC: mac})
	require.NoError(t, err)
	inside, err := host.InSandboxes()
	require.NoError(t, err)
	require.Empty(t, inside, "they are on the host")
	require.NoError(t, host.MoveInto(pair().Peer, path, "eth0"))
	require.NoError(t, host.MoveInto("mspslave", path, "eth1"))
	run(t, "ip -n one addr add 10.8.0.9/24 dev eth1")
	want := map[string]link.InSandbox{owner: {}, "slave": {Path: path, Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.9/24")}}}
	inside, err = host.InSandboxes()
	require.NoError(t, err)
	require.Equal(t, want, inside)

	// what is marked as ours, and is of no device of the host's
	run(t, "ip -n one link add forged type veth peer name other")
	run(t, "ip -n one link add link forged name forged1 type macvlan")
	for _, name := range []string{"forged", "forged1"} {
		run(t, "ip -n one link set "+name+" alias mustang:"+name)
	}
	inside, err = host.InSandboxes()
	require.NoError(t, err)
	require.Equal(t, want, inside)
}

// The namespace of a container is often kept by its process alone, and that is another user's, whose directories in /proc a daemon without
// all of root's capabilities cannot list.
func TestASandboxThatAnotherUsersProcessKeeps(t *testing.T) {
	begin(t)
	cmd := exec.Command("sleep", "infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Credential: &syscall.Credential{Uid: 1000, Gid: 1000}, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	path := fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	end := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	run(t, "ip link add parent type veth peer name other")
	t.Cleanup(func() { run(t, "ip link del parent") })
	_, err := host.CreateSlave(link.Slave{Owner: "slave", Name: "mspslave", Parent: "parent", Type: "macvlan", Mode: "bridge", MAC: mac})
	require.NoError(t, err)
	require.NoError(t, host.MoveInto("mspslave", path, "eth0"))

	dropped := make(chan struct{})
	go func() { // a thread without these capabilities, which ends with it
		defer close(dropped)
		runtime.LockOSThread()
		header, data := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
		if !assert.NoError(t, unix.Capget(&header, &data[0])) {
			return
		}
		data[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
		if !assert.NoError(t, unix.Capset(&header, &data[0])) {
			return
		}
		_, err := os.ReadDir(filepath.Dir(path))
		assert.ErrorIs(t, err, os.ErrPermission)
		inside, err := host.InSandboxes()
		assert.NoError(t, err)
		assert.Equal(t, map[string]link.InSandbox{"slave": {Path: path}}, inside)
	}()
	<-dropped

	end()
	require.Eventually(t, func() bool {
		inside, err := host.InSandboxes()
		return assert.NoError(t, err) && len(inside) == 0
	}, 10*time.Second, 10*time.Millisecond)
}
