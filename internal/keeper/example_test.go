package keeper_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/internal/keeper"
	"github.com/keyturn/keyturn/internal/keeper/file"
	"github.com/keyturn/keyturn/secret"
)

// Material is sealed for one version of one key, and opens nowhere else.
func Example() {
	folder, err := os.MkdirTemp("", "keyturn")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	kek, err := file.Open(file.Config{Path: filepath.Join(folder, "kek.json")})
	if err != nil {
		panic(err)
	}
	ctx, place := context.Background(), keeper.Place{Key: "prod/orders/db", Version: 7}

	sealed, err := keeper.SealMaterial(ctx, kek, place, map[string]secret.Value{"password": secret.NewString("correct horse")})
	if err != nil {
		panic(err)
	}
	secrets, err := keeper.OpenMaterial(ctx, kek, place, sealed)
	fmt.Println(secrets["password"], secrets["password"].Len(), err)

	place.Version = 8
	_, err = keeper.OpenMaterial(ctx, kek, place, sealed)
	fmt.Println(err)
	// Output:
	// [redacted] 13 <nil>
	// open prod/orders/db v8: unwrap the data key: key file: sealed data does not authenticate
}
