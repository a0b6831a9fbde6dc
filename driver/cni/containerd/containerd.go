// SPDX-License-Identifier: Apache-2.0

// Package containerd asks containerd what its clients have written on a container.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// patience is how long an answer may take: a container's start waits for it.
const patience = time.Second

// idLength is that of the ids of nerdctl's containers.
const idLength = 64

// namespaceHeader is where a call says which of containerd's namespaces it means.
const namespaceHeader = "containerd-namespace"

// Labels returns the labels of a container by the id that plugins get, which is NAMESPACE-ID: none of one that is not
// containerd's, or where no containerd runs at the socket.
func Labels(ctx context.Context, socket, container string) (map[string]string, error) {
	at := len(container) - idLength - 1
	if at < 1 || container[at] != '-' || strings.Trim(container[at+1:], "0123456789abcdef") != "" {
		return nil, nil
	}
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("ask containerd at %s: %w", socket, err)
	}
	defer func() { _ = conn.Close() }() // nothing is lost with it
	ctx = metadata.AppendToOutgoingContext(ctx, namespaceHeader, container[:at])
	got, err := containers.NewContainersClient(conn).Get(ctx, &containers.GetContainerRequest{ID: container[at+1:]})
	if err != nil {
		return nil, fmt.Errorf("ask containerd at %s about the container %s: %w", socket, container[at+1:], err)
	}
	return got.GetContainer().GetLabels(), nil
}
