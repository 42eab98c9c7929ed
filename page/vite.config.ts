import { defineConfig } from 'vite';

export default defineConfig({
  base: './',
  build: {
    outDir: '../src/talud/serving/static',
    emptyOutDir: true,
    target: 'es2022',
    // The service's content security policy allows files of its own alone: nothing inline, no data: scripts.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    // What is bundled is named, with its licence, beside the page.
    license: { fileName: 'licences.txt' },
    chunkSizeWarningLimit: 1000,
  },
});
