import { defineConfig } from 'vite';

export default defineConfig({
  base: './',
  build: {
    outDir: '../src/talud/serving/static',
    emptyOutDir: true,
    target: 'es2022',
    // The service's content security policy allows only its own files: no inline scripts, no data: URLs.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // Lists the bundled libraries and their licences.
    license: { fileName: 'licences.txt' },
    chunkSizeWarningLimit: 1000,
  },
});
