// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// entries are the raw keys and values of a map.
func entries(t testing.TB, name string) map[string][]byte {
	t.Helper()
	m := testDP.maps[name]
	key, value := make([]byte, m.KeySize()), make([]byte, m.ValueSize())
	out := map[string][]byte{}
	it := m.Iterate()
	for it.Next(&key, &value) {
		out[string(key)] = slices.Clone(value)
	}
	require.NoError(t, it.Err())
	return out
}

func TestServiceEntries(t *testing.T) {
	clearMaps(t)
	for _, at := range []string{"10.96.0.10", "fd00:96::10", "0.0.0.0", "::"} { // the last are ports of all addresses
		f := Frontend{Addr: netip.MustParseAddr(at), Port: 5201, Protocol: ProtocolTCP}
		want := Service{Frontend: f, ID: 7, Network: 3, Affinity: 60, Published: f.Addr.IsUnspecified()}
		for _, slots := range [][]uint32{{1, 2, 2}, {}, {9}, {1, 2, 3, 4, 5}, {5, 4}} { // grows and shrinks
			want.Slots, want.Reserve = slots, nil
			if len(slots) > 2 {
				want.Reserve = []uint32{8, 9}
			}
			require.NoError(t, testDP.PutService(want))
			got, err := testDP.Services()
			require.NoError(t, err)
			require.Equal(t, []Service{want}, got)
			require.Len(t, entries(t, "services"), len(slots)+len(want.Reserve)+1, "slots of the longer service are gone")
		}
		other := Service{Frontend: f.Head(), ID: 8, Slots: []uint32{1}}
		require.NoError(t, testDP.PutService(other))
		require.NoError(t, testDP.DeleteService(f))
		require.NoError(t, testDP.DeleteService(f), "deleting what is missing is no error")
		got, err := testDP.Services()
		require.NoError(t, err)
		require.Equal(t, []Service{other}, got)
		require.NoError(t, testDP.DeleteService(f.Head()))
		require.Empty(t, entries(t, "services"))
	}
}

// TestRemoveStrays leaves what a writer leaves that was killed: before the entry, in the place of a longer one, and after an entry has gone.
func TestRemoveStrays(t *testing.T) {
	clearMaps(t)
	any := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("::/0")}
	kept := Service{Frontend: Frontend{Addr: netip.MustParseAddr("10.96.0.10")}, ID: 1, Slots: []uint32{1, 2}, Reserve: []uint32{3}, Sources: any}
	require.NoError(t, testDP.PutService(kept))
	slots, sources := entries(t, "services"), entries(t, "sources")
	stray := kept.Frontend.key(4)
	require.NoError(t, testDP.maps["services"].Put(&stray, &mstService{Backend: 9}))
	stray = Frontend{Addr: netip.MustParseAddr("10.96.0.11"), Port: 80, Protocol: ProtocolTCP}.key(1)
	require.NoError(t, testDP.maps["services"].Put(&stray, &mstService{Backend: 9}))
	require.NoError(t, testDP.sources.add(testDP.maps["sources"], 2, any))
	require.NoError(t, testDP.RemoveStrays())
	require.Equal(t, slots, entries(t, "services"))
	require.Equal(t, sources, entries(t, "sources"))
}

func TestSourcesOfServices(t *testing.T) {
	clearMaps(t)
	prefixes := func(texts ...string) []netip.Prefix {
		out := []netip.Prefix{}
		for _, s := range texts {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	listed := func(t *testing.T) map[uint32][]netip.Prefix {
		t.Helper()
		got, err := testDP.Services()
		require.NoError(t, err)
		out := map[uint32][]netip.Prefix{}
		for _, s := range got {
			out[s.ID] = s.Sources
		}
		return out
	}
	f := Frontend{Addr: netip.IPv4Unspecified(), Port: 80, Protocol: ProtocolTCP}
	one := Service{Frontend: f, ID: 7, Published: true, Slots: []uint32{}}
	f.Port = 81
	other := Service{Frontend: f, ID: 8, Published: true, Slots: []uint32{}, Sources: prefixes("10.0.0.0/8")}
	require.NoError(t, testDP.PutService(other))
	for _, sources := range [][]netip.Prefix{
		prefixes("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.1/32"), prefixes("10.1.0.0/16", "::/0"), prefixes(),
		prefixes("2001:db8::/32", "2001:db8::1/128"), nil, prefixes("192.0.2.0/24"),
	} { // grows and shrinks
		one.Sources = sources
		require.NoError(t, testDP.PutService(one))
		require.Equal(t, map[uint32][]netip.Prefix{7: sources, 8: other.Sources}, listed(t))
		want := len(sources) + 1
		if slices.Contains(sources, netip.MustParsePrefix("::/0")) {
			want++ // and that IPv4 is not meant
		}
		require.Len(t, entries(t, "sources"), want)
	}
	t.Run("what was written before a crash does not let in later", func(t *testing.T) {
		require.NoError(t, testDP.sources.add(testDP.maps["sources"], 7, prefixes("198.51.100.0/24")))
		testDP.sources = sources{} // a new process
		require.NoError(t, testDP.PutService(one))
		require.Equal(t, one.Sources, listed(t)[7])
	})
	t.Run("prefixes are what they cover", func(t *testing.T) {
		masked := one
		masked.Sources = prefixes("192.0.2.77/24", "::ffff:192.0.2.0/120")
		require.NoError(t, testDP.PutService(masked))
		require.Equal(t, one.Sources, listed(t)[7])
	})
	t.Run("a frontend that changes hands takes none along", func(t *testing.T) {
		one.ID, one.Sources = 9, prefixes("203.0.113.0/24")
		require.NoError(t, testDP.PutService(one))
		require.Equal(t, map[uint32][]netip.Prefix{9: one.Sources, 8: other.Sources}, listed(t))
		require.Len(t, entries(t, "sources"), 2)
	})
	t.Run("they go with the service", func(t *testing.T) {
		require.NoError(t, testDP.DeleteService(one.Frontend))
		require.Len(t, entries(t, "sources"), 1)
		require.NoError(t, testDP.DeleteService(other.Frontend))
		require.Empty(t, entries(t, "sources"))
	})
}

func TestBytesOfEntries(t *testing.T) {
	clearMaps(t)
	require.NoError(t, testDP.PutService(Service{
		Frontend: Frontend{Addr: netip.MustParseAddr("10.96.0.10"), Port: 5201, Protocol: ProtocolTCP}, ID: 0x01020304,
	}))
	mapped := "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	for key, value := range entries(t, "services") {
		require.Equal(t, mapped+"\x0a\x60\x00\x0a\x14\x51\x06\x00\x00\x00\x00\x00", key, "ports are in network byte order")
		require.Len(t, value, 28)
	}
	require.NoError(t, testDP.PutBackend(Backend{ID: 1, Addr: netip.MustParseAddr("192.168.10.10"), Port: 8080, NetnsCookie: 5}))
	for _, value := range entries(t, "backends") {
		require.Equal(t, mapped+"\xc0\xa8\x0a\x0a\x1f\x90", string(value[:18]))
	}
	require.NoError(t, testDP.PutSandbox(Sandbox{Cookie: 5, DNSPort: 5353}))
	for _, value := range entries(t, "sandboxes") {
		require.Equal(t, "\x14\xe9", string(value[4:6]))
	}
}

func TestBackendEntries(t *testing.T) {
	clearMaps(t)
	all := []Backend{
		{ID: 1, Addr: netip.MustParseAddr("10.1.0.3"), Port: 8080, NetnsCookie: 1 << 40},
		{ID: 2, Addr: netip.MustParseAddr("fd00:1::3")},
	}
	for _, b := range all {
		require.NoError(t, testDP.PutBackend(b))
	}
	all[1].Port = 65535
	require.NoError(t, testDP.PutBackend(all[1]), "replaces")
	got, err := testDP.Backends()
	require.NoError(t, err)
	slices.SortFunc(got, func(a, b Backend) int { return cmp.Compare(a.ID, b.ID) })
	require.Equal(t, all, got)
	for range 2 {
		require.NoError(t, testDP.DeleteBackend(1))
		require.NoError(t, testDP.DeleteBackend(2))
	}
	require.Empty(t, entries(t, "backends"))
}

func TestEndpointEntries(t *testing.T) {
	clearMaps(t)
	for _, e := range []Endpoint{
		{Addr: netip.MustParseAddr("10.1.0.2"), IfIndex: 70000, Network: 4, Redirect: true, MAC: mac(1), HostMAC: mac(2)},
		{Addr: netip.MustParseAddr("fd00:1::2"), IfIndex: 2, Host: true, MAC: mac(1), HostMAC: mac(2)},
	} {
		require.NoError(t, testDP.PutEndpoint(e))
		got, err := testDP.Endpoints()
		require.NoError(t, err)
		require.Equal(t, []Endpoint{e}, got)
		for range 2 {
			require.NoError(t, testDP.DeleteEndpoint(e.Addr))
		}
		require.Empty(t, entries(t, "endpoints"))
	}
}

func TestInterfaceEntries(t *testing.T) {
	clearMaps(t)
	require.NoError(t, testDP.PutInterface(Interface{IfIndex: 12, Network: 3, Strict: true, Gateway4: netip.MustParseAddr("10.1.0.1"), MAC: mac(9)}))
	var key, v = uint32(12), mstInterface{}
	require.NoError(t, testDP.maps["interfaces"].Lookup(&key, &v))
	require.Equal(t, mstInterface{Network: 3, Flags: ifStrict, Gateway4: addrOf(netip.MustParseAddr("10.1.0.1")), Mac: [6]byte(mac(9))}, v)
	got, err := testDP.Interfaces()
	require.NoError(t, err)
	require.Equal(t, []int{12}, got)
	for range 2 {
		require.NoError(t, testDP.DeleteInterface(12))
	}
	require.Empty(t, entries(t, "interfaces"))
}

func TestSandboxEntries(t *testing.T) {
	clearMaps(t)
	want := Sandbox{Cookie: 1 << 33, SocketLB: true, Tracked: true, DNSPort: 5353}
	require.NoError(t, testDP.PutSandbox(want))
	require.NoError(t, testDP.PutMember(want.Cookie, 2))
	require.NoError(t, testDP.PutMember(want.Cookie, 3))
	got, found, err := testDP.Sandbox(want.Cookie)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, want, got)
	members, err := testDP.Sandboxes()
	require.NoError(t, err)
	require.Len(t, members, 1)
	require.ElementsMatch(t, []uint32{2, 3}, members[want.Cookie])

	for _, cookie := range []uint64{want.Cookie, 77} {
		require.NoError(t, testDP.maps["listeners"].Put(&mstListenerKey{Cookie: cookie, Port: be(80)}, uint32(1)))
	}
	for range 2 {
		require.NoError(t, testDP.DeleteMember(want.Cookie, 2))
		require.NoError(t, testDP.DeleteMember(want.Cookie, 3))
		require.Len(t, entries(t, "sandboxes"), map[bool]int{true: 1, false: 0}[len(entries(t, "listeners")) == 2])
		require.NoError(t, testDP.DeleteMember(want.Cookie, 0))
	}
	require.Empty(t, entries(t, "sandboxes"))
	require.Len(t, entries(t, "listeners"), 1, "the other sandbox keeps its listeners")
	_, found, err = testDP.Sandbox(want.Cookie)
	require.NoError(t, err)
	require.False(t, found)
}

func TestPools(t *testing.T) {
	clearMaps(t)
	ones := ^uint32(0)
	mapped := be32(0x0000ffff)
	four, six := netip.MustParsePrefix("10.96.1.2/20"), netip.MustParsePrefix("fd00:96::/64")
	require.NoError(t, testDP.SetPools(four, six))
	cfg, err := testDP.config()
	require.NoError(t, err)
	require.Equal(t, [4]uint32{0, 0, mapped, be32(0x0a600000)}, cfg.Pool4.W, "host bits are masked out")
	require.Equal(t, [4]uint32{ones, ones, ones, be32(0xfffff000)}, cfg.Mask4.W)
	require.Equal(t, [4]uint32{be32(0xfd000096), 0, 0, 0}, cfg.Pool6.W)
	require.Equal(t, [4]uint32{ones, ones, 0, 0}, cfg.Mask6.W)

	require.NoError(t, testDP.Beat())
	beat, err := testDP.config()
	require.NoError(t, err)
	require.NotZero(t, beat.Heartbeat)
	require.Equal(t, cfg.Mask4, beat.Mask4, "a beat leaves the pools")

	require.NoError(t, testDP.SetPools(netip.Prefix{}, netip.Prefix{}))
	cfg, err = testDP.config()
	require.NoError(t, err)
	require.Equal(t, mstConfig{Heartbeat: beat.Heartbeat}, cfg, "no pools, the same beat")
}

func be32(v uint32) uint32 {
	return addrOf(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})).W[3]
}

func TestFillCountsEntries(t *testing.T) {
	clearMaps(t)
	require.NoError(t, testDP.PutService(Service{Frontend: Frontend{Addr: netip.MustParseAddr("10.96.0.10")}, Slots: []uint32{1, 2}}))
	fill, err := testDP.Fill()
	require.NoError(t, err)
	require.Contains(t, fill, Fill{Name: "services", Entries: 3, Max: 524288})
	require.Contains(t, fill, Fill{Name: "backends", Entries: 0, Max: 131072})
	clearMaps(t)
}

func TestReopenedMapsKeepTheirEntries(t *testing.T) {
	clearMaps(t)
	require.NoError(t, testDP.PutBackend(Backend{ID: 1, Addr: netip.MustParseAddr("10.1.0.3")}))
	again, err := Open(testBPFFS)
	require.NoError(t, err)
	defer again.Close()
	got, err := again.Backends()
	require.NoError(t, err)
	require.Len(t, got, 1)
	clearMaps(t)
}

// Somebody removes pins while no daemon is there to see it: what programs read is pinned again, not something new.
func TestOpenPinsAgainWhatProgramsUse(t *testing.T) {
	clearMaps(t)
	newSandbox(t)
	require.NoError(t, testDP.PutBackend(Backend{ID: 1, Addr: netip.MustParseAddr("10.1.0.3")}))
	used := map[string]ebpf.MapID{}
	for short, m := range testDP.maps {
		used[short] = mapID(m)
	}
	for _, name := range []string{"backends_v1", "sandboxes_v1", "socks_v2"} {
		require.NoError(t, os.Remove(filepath.Join(testDP.dir, "mst_"+name)))
	}
	again, err := Open(testBPFFS)
	require.NoError(t, err)
	defer again.Close()
	for short, m := range again.maps {
		require.Equal(t, used[short], mapID(m), short)
	}
	clearMaps(t)
}

// A map of another version is not taken for one of this: the kernel has cut both names off where they differ.
func TestOpenLeavesWhatAnotherVersionUses(t *testing.T) {
	newSandbox(t)
	pin := filepath.Join(testDP.dir, "mst_sandboxes_v1")
	require.NoError(t, os.Rename(pin, testDP.dir+"/mst_sandboxes_v0"))
	again, err := Open(testBPFFS)
	require.NoError(t, err)
	defer again.Close()
	require.NotEqual(t, mapID(testDP.maps["sandboxes"]), mapID(again.maps["sandboxes"]))
	require.NoError(t, os.Rename(testDP.dir+"/mst_sandboxes_v0", pin))
}

func TestOpenRefuses(t *testing.T) {
	mount := func(t *testing.T) string {
		dir := t.TempDir()
		require.NoError(t, unix.Mount("bpf", dir, "bpf", 0, "mode=0700"))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
		return dir
	}
	pins := func(t *testing.T, dir string, mode os.FileMode, uid int) {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "tc"), 0o700))
		require.NoError(t, os.Chown(filepath.Join(dir, "tc"), uid, 0))
		require.NoError(t, os.Chmod(filepath.Join(dir, "tc"), mode))
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T) string
		want    string // part of the error; "" for none
	}{
		{"a directory that is no BPF filesystem", func(t *testing.T) string { return t.TempDir() }, "not a BPF filesystem"},
		{"a path that does not exist", func(*testing.T) string { return "/nonexistent/bpf" }, "no such file"},
		{"pins writable by a group", func(t *testing.T) string { d := mount(t); pins(t, d, 0o770, 0); return d }, "writable by nobody else"},
		{"pins writable by all", func(t *testing.T) string { d := mount(t); pins(t, d, 0o707, 0); return d }, "writable by nobody else"},
		{"pins of another user", func(t *testing.T) string { d := mount(t); pins(t, d, 0o700, 1000); return d }, "must be root's"},
		{"a BPF filesystem writable by all", func(t *testing.T) string { d := mount(t); require.NoError(t, os.Chmod(d, 0o777)); return d }, "writable by nobody else"},
		{"but not sticky directories, whose entries only their owners can replace", func(t *testing.T) string {
			d := mount(t)
			require.NoError(t, os.Chmod(d, 0o777|os.ModeSticky))
			pins(t, d, 0o777|os.ModeSticky, 0)
			return d
		}, ""},
		{"a map that another layout has pinned", func(t *testing.T) string {
			d := mount(t)
			require.NoError(t, os.MkdirAll(filepath.Join(d, pinDir), 0o700))
			m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			require.NoError(t, err)
			defer m.Close()
			require.NoError(t, m.Pin(filepath.Join(d, pinDir, "mst_backends_v1")))
			return d
		}, "pinned by another build"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := c.prepare(t)
			d, err := Open(dir)
			if c.want == "" {
				require.NoError(t, err)
				d.Close()
				require.NoError(t, RemoveAll(dir))
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestRemoveAllLeavesWhatIsNotOurs(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, RemoveAll(dir), "nothing there is no error")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, pinDir), 0o700))
	for _, name := range []string{"mst_services_v1", "mst_link_sock_ops", "cilium_ct"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, pinDir, name), nil, 0o600))
	}
	require.NoError(t, RemoveAll(dir))
	left, err := os.ReadDir(filepath.Join(dir, pinDir))
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.True(t, strings.HasPrefix(left[0].Name(), "cilium"))
}

// Of many flows those of one endpoint go with it, and no other.
func TestEndpointAmongManyFlows(t *testing.T) {
	clearMaps(t)
	const others = 20000
	own := netip.MustParseAddr("10.1.0.1")
	var ct puts[mstTuple, mstCt]
	for i := range others {
		from := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
		ct.add(mstTuple{Saddr: addrOf(from), Daddr: addrOf(netip.MustParseAddr("10.3.0.1")), Proto: uint8(ProtocolUDP)}, mstCt{})
	}
	for port := range uint16(100) {
		ct.add(mstTuple{Saddr: addrOf(own), Sport: port, Proto: uint8(ProtocolUDP)}, mstCt{})
		ct.add(mstTuple{Saddr: addrOf(netip.MustParseAddr("10.3.0.2")), Sport: port, Proto: uint8(ProtocolUDP)}, mstCt{Daddr: addrOf(own)})
	}
	for _, name := range []string{"ct", "snat"} {
		_, err := ct.write(testDP.maps[name])
		require.NoError(t, err)
	}
	require.NoError(t, testDP.DeleteEndpoint(own))
	for _, name := range []string{"ct", "snat"} {
		require.Len(t, entries(t, name), others, name)
	}
	clearMaps(t)
}

func BenchmarkEndpointAmongManyFlows(b *testing.B) {
	var ct puts[mstTuple, mstCt]
	for i := range 60000 {
		ct.add(mstTuple{Saddr: addrOf(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})), Proto: uint8(ProtocolUDP)}, mstCt{})
	}
	for _, name := range []string{"ct", "snat"} {
		_, err := ct.write(testDP.maps[name])
		require.NoError(b, err)
	}
	for b.Loop() {
		require.NoError(b, testDP.DeleteEndpoint(netip.MustParseAddr("10.1.0.1")))
	}
}
