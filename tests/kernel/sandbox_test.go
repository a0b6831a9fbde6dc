// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver/link"
)

func TestCookie(t *testing.T) {
	own, err := host.Cookie("")
	require.NoError(t, err)
	self, err := host.Cookie(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
	require.NoError(t, err)
	require.Equal(t, own, self)
	seen := map[uint64]bool{own: true}
	for _, name := range []string{"one", "two"} {
		path := netns(t, name)
		first, err := host.Cookie(path)
		require.NoError(t, err)
		second, err := host.Cookie(path)
		require.NoError(t, err)
		require.Equal(t, first, second)
		require.NotContains(t, seen, first)
		seen[first] = true
	}
	after, err := host.Cookie("")
	require.NoError(t, err)
	require.Equal(t, own, after, "back where it was")
	file := filepath.Join(t.TempDir(), "sandbox") // what engine 20.10 makes first
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{"/run/netns/none", file} {
		_, err := host.Cookie(path)
		require.ErrorIs(t, err, link.ErrNoNetns)
		require.ErrorContains(t, err, `read the cookie of the network namespace "`+path+`"`)
	}
}

func TestListens(t *testing.T) {
	path := netns(t, "one")
	run(t, "ip -n one link set lo up")
	run(t, "ip -n one addr add 10.8.0.1/32 dev lo")
	listens := func() bool {
		got, err := host.Listens(path)
		require.NoError(t, err)
		return got
	}
	require.False(t, listens())
	for _, tt := range []struct {
		addr string
		want bool
	}{{"127.0.0.11:0", false}, {"[::1]:0", false}, {"10.8.0.1:0", true}, {"0.0.0.0:0", true}, {"[::]:0", true}} {
		var l net.Listener
		require.NoError(t, host.Do(path, func() (err error) {
			l, err = net.Listen("tcp", tt.addr)
			return err
		}))
		require.Equal(t, tt.want, listens(), tt.addr)
		require.NoError(t, l.Close())
	}
	require.False(t, listens())
	_, err := host.Listens("/run/netns/none")
	require.ErrorIs(t, err, link.ErrNoNetns)
}

func TestFindInside(t *testing.T) {
	begin(t)
	path := netns(t, "one")
	run(t, "ip link add host0 type veth peer name eth0 netns one")
	t.Cleanup(func() { run(t, "ip link del host0") })
	run(t, "ip -n one addr add 192.168.10.10/24 dev eth0")
	run(t, "ip -n one -6 addr add fd10::10/64 dev eth0 nodad")
	run(t, "ip -n one link set eth0 up")
	run(t, "ip link set host0 up")
	outer, err := host.Find("host0")
	require.NoError(t, err)
	in, err := host.FindInside(path, "eth0")
	require.NoError(t, err)
	require.Equal(t, outer.Index, in.Peer)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("192.168.10.10/24"), netip.MustParsePrefix("fd10::10/64")}, in.Addrs,
		"link-local addresses are left out")
	lo, err := host.FindInside(path, "lo")
	require.NoError(t, err)
	require.Zero(t, lo.Peer)

	_, err = host.FindInside(path, "eth9")
	require.EqualError(t, err, "look into the sandbox "+path+": find the device eth9: there is no such device")
	_, err = host.FindInside("/run/netns/none", "eth0")
	require.EqualError(t, err, "look into the sandbox /run/netns/none: there is no such network namespace")
	_, err = host.FindInside("/etc/hostname", "eth0")
	require.ErrorIs(t, err, link.ErrNoNetns)
}

func TestAnIndexOfAnotherNamespaceIsNotTakenForTheHosts(t *testing.T) {
	begin(t)
	one, two := netns(t, "one"), netns(t, "two")
	run(t, "ip -n two link add b0 index 4242 type veth peer name a0 netns one")
	run(t, "ip link add x0 index 4242 type veth peer name x1") // the same index, on the host
	t.Cleanup(func() { run(t, "ip link del x0") })
	for path, name := range map[string]string{one: "a0", two: "b0"} {
		in, err := host.FindInside(path, name)
		require.NoError(t, err)
		require.Zero(t, in.Peer, "its other end is not on the host")
	}
}
