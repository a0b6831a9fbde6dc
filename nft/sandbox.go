// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
)

// tableName is the name of our tables, of the host and of sandboxes.
const tableName = "mustang"

// netlink is the kernel of this machine.
type netlink struct{}

// sandbox opens the namespace at path. What is open stays the same if the path leads elsewhere later.
func (netlink) sandbox(path string, pools [2]netip.Prefix) (tables, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &namespace{ns: ns, pools: pools}, nil
}

// namespace is a sandbox's network namespace.
type namespace struct {
	ns       *os.File
	pools    [2]netip.Prefix
	resolver *resolver // nil while there is none
}

// buffer is room for a transaction of tens of thousands of services, and for its acknowledgements. The kernel takes as
// much as is needed only.
const buffer = 256 << 20

func sized(c *nl.Conn) error {
	return errors.Join(c.SetReadBuffer(buffer), c.SetWriteBuffer(buffer))
}

// conn is good for one transaction.
func (n *namespace) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(n.ns.Fd())), nftables.WithSockOptions(sized))
}

// replace makes the table anew. No packet meets less than the old one or all of the new one.
func (n *namespace) replace(all []frontend) error {
	c, err := n.conn()
	if err != nil {
		return err
	}
	t := renew(c, &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet})
	b := newBase(t, n.pools)
	if err := b.add(c); err != nil {
		return err
	}
	if err := b.put(c, all); err != nil {
		return err
	}
	return c.Flush()
}

// renew makes a table that is empty, whether it was there or not.
func renew(c *nftables.Conn, t *nftables.Table) *nftables.Table {
	c.AddTable(t)
	c.DelTable(t)
	return c.AddTable(t)
}

// change writes some frontends and removes others.
func (n *namespace) change(put []frontend, gone []bpf.Frontend) error {
	c, err := n.conn()
	if err != nil {
		return err
	}
	b := newBase(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, n.pools)
	if err := b.put(c, put); err != nil {
		return err
	}
	if err := b.remove(c, gone); err != nil {
		return err
	}
	return c.Flush()
}

// errNoTable says that a sandbox has no table of ours.
var errNoTable = errors.New("the sandbox has no table of ours")

// frontends reads which frontends the sandbox has.
func (n *namespace) frontends() (map[bpf.Frontend]struct{}, error) {
	c, err := n.conn()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	out, found := map[bpf.Frontend]struct{}{}, false
	for _, ch := range chains {
		if ch.Table.Name != tableName {
			continue
		}
		found = true
		if f, ok := parseChain(ch.Name); ok {
			out[f] = struct{}{}
		}
	}
	if !found {
		return nil, errNoTable
	}
	return out, nil
}

// remove removes both tables; missing ones are no error.
func (n *namespace) remove() error {
	err := n.names(0)
	c, connErr := n.conn()
	if connErr != nil {
		return errors.Join(err, connErr)
	}
	c.DelTable(c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}))
	return errors.Join(err, c.Flush())
}

func (n *namespace) close() {
	n.stopNames()
	n.ns.Close()
}

// chainName is the name of a frontend's chain: vip_10.96.1.176_80_tcp without what nft could not read back.
func chainName(f bpf.Frontend) string {
	addr := strings.NewReplacer(".", "-", ":", "-").Replace(f.Addr.StringExpanded())
	return fmt.Sprintf("vip%s_%s_%d_%d", familyOf(f.Addr).suffix, addr, f.Port, f.Protocol)
}

// parseChain is the frontend that a chain is for, if it is for one.
func parseChain(name string) (f bpf.Frontend, ok bool) {
	parts := strings.Split(name, "_")
	if len(parts) != 4 || !strings.HasPrefix(name, "vip") {
		return f, false
	}
	sep := "."
	if parts[0] == "vip6" {
		sep = ":"
	}
	var err error
	if f.Addr, err = netip.ParseAddr(strings.ReplaceAll(parts[1], "-", sep)); err != nil {
		return f, false
	}
	_, err = fmt.Sscanf(parts[2]+" "+parts[3], "%d %d", &f.Port, &f.Protocol)
	return f, err == nil
}

// missing tells whether what was to be changed is not there.
func missing(err error) bool { return errors.Is(err, unix.ENOENT) }
